"""The loss of click logits, binary cross-entropy, and its gradient in one pass."""

from typing import NamedTuple

import numpy as np

from .compiled import kernel, serial
from .memory import float_at, set_float
from .threads import on_all_threads

_SAMPLES_PER_ITEM = 512


class Clicks(NamedTuple):
    """Addresses, all f32[B]."""

    logits: int
    labels: int
    grad: int
    batch: int


def partial_floats(batch: int) -> int:
    """Scratch memory."""
    return -(-batch // _SAMPLES_PER_ITEM)


@kernel
def click_loss(clicks: Clicks, share: float, partial: int, loss: int) -> None:
    """loss f32 = the sum over the samples times `share`; grad = the gradient of that.

    partial: f32[items]. The items depend on the batch only, so the loss does not depend on the threads.
    """
    items = (clicks.batch + _SAMPLES_PER_ITEM - 1) // _SAMPLES_PER_ITEM
    on_all_threads(items, _add_up, (clicks, np.float32(share), partial))
    summed = 0.0
    for item in range(items):
        summed += float_at(partial, item)
    set_float(loss, 0, np.float32(summed * share))


@serial
def _add_up(clicks: Clicks, share: np.float32, partial: int, item: int) -> None:
    one, summed = np.float32(1), 0.0
    for i in range(item * _SAMPLES_PER_ITEM, min(clicks.batch, (item + 1) * _SAMPLES_PER_ITEM)):
        x, y = float_at(clicks.logits, i), float_at(clicks.labels, i)
        # Of the negative magnitude: large logits must not overflow. And no two large numbers are subtracted.
        small = np.exp(-abs(x))
        summed += ((one - y) * x if x >= 0 else -y * x) + np.log1p(small)
        probability = (one if x >= 0 else small) / (one + small)
        set_float(clicks.grad, i, (probability - y) * share)
    set_float(partial, item, np.float32(summed))
