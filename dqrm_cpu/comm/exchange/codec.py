"""How a sparse gradient becomes the bytes of one message for all tables, and how the ranks' messages become one sum.

Counts and abs-max of every rank travel beforehand in one small gather: both sides know the shape of each message, and
all ranks come to one scale (paper B.1).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from dqrm_cpu.comm.exchange.settings import ExchangeSettings
from dqrm_cpu.comm.transport import Bytes, align
from dqrm_cpu.errors import TrainingError, unanimous
from dqrm_cpu.kernels.types import SparseGrad

PART_ALIGNMENT_BYTES = 16

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]
Merge = Callable[[Sequence[SparseGrad]], SparseGrad]
"""Sums the gradients of all ranks in rank order, in memory of its own."""

INTEGER_LIMITS = {"int8": 127, "int16": 32767}
"""The largest code of a width; -limit is the smallest, so that both signs saturate alike."""

_SMALLEST_NORMAL = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class ScaleRule:
    """The rule by which the ranks' largest magnitudes become one scale; `limit` is the largest code."""

    limit: int
    mean: bool = False
    first_only: bool = False

    @classmethod
    def of(cls, settings: ExchangeSettings, width: str) -> "ScaleRule":
        """Returns the rule that the settings ask for, for integers of a width."""
        return cls(INTEGER_LIMITS[width], settings.scale_reduce == "mean", settings.simulated_scale == "first")

    def scales(self, absmax: Floats) -> Floats:
        """Computes the scale of each group f32[G], above 0, from finite absmax f32[ranks, G]."""
        if self.first_only:
            # A group that the first has nothing of would lose what the others have.
            combined = np.where(absmax[0] > 0, absmax[0], absmax.max(axis=0))
        elif self.mean:
            # In FP64, which neither overflows nor rounds differently from one machine to another.
            combined = (absmax.astype(np.float64).sum(axis=0) / absmax.shape[0]).astype(np.float32)
        else:
            combined = absmax.max(axis=0)
        scales = combined / np.float32(self.limit)
        # A group of zeros, or of values so small that their scale has no full precision: they are sent as 0.
        return np.where(scales < _SMALLEST_NORMAL, np.float32(1), scales)


class MessageLayout(NamedTuple):
    """The places of a message's parts: rows int32[N], then values [N, D]; both begin and end on 16 bytes."""

    num_rows: int
    dim: int
    value_bytes: int  # of one value

    @property
    def index_bytes(self) -> int:
        """The bytes of the rows."""
        return self.num_rows * 4

    @property
    def all_value_bytes(self) -> int:
        """The bytes of all values."""
        return self.num_rows * self.dim * self.value_bytes

    @property
    def values_start(self) -> int:
        """The byte at which the values begin."""
        return align(self.index_bytes, PART_ALIGNMENT_BYTES)

    @property
    def message_bytes(self) -> int:
        """The bytes of the whole message, with its padding."""
        return self.values_start + align(self.all_value_bytes, PART_ALIGNMENT_BYTES)

    def rows(self, message: Bytes) -> npt.NDArray[np.int32]:
        """Returns a view of the rows int32[N]."""
        return message[: self.index_bytes].view(np.int32)

    def values(self, message: Bytes) -> Bytes:
        """Returns a view of the bytes of all values."""
        return message[self.values_start : self.values_start + self.all_value_bytes]

    def clear_padding(self, message: Bytes) -> None:
        """Zeroes what is neither row nor value: memory of an earlier message never travels."""
        message[self.index_bytes : self.values_start] = 0
        message[self.values_start + self.all_value_bytes :] = 0


class Codec(Protocol):
    """A form of table gradients between ranks. Scales are f32[T]; codecs without a scale rule ignore them."""

    @property
    def name(self) -> str:
        """The choice of comm.wire that it carries out."""

    @property
    def value_bytes(self) -> int:
        """The bytes of one value on the wire."""

    @property
    def scale_rule(self) -> ScaleRule | None:
        """How all ranks come to one scale; None where values need none."""

    def absmax(self, grad: SparseGrad) -> Floats | None:
        """Finds the largest magnitude in each table f32[T], NaN where a value is; None without a scale rule."""

    def encode(self, grad: SparseGrad, scales: Floats, out: Bytes) -> None:
        """Fills `out`, a message of the gradient's MessageLayout."""

    def sent(self, grad: SparseGrad, scales: Floats, message: Bytes) -> Floats:
        """Returns the values f32[N, D] that the other ranks will decode from the message of `grad`."""

    def sum_rows(
        self, rows: Sequence[Ints], values: Sequence[Bytes], pointers: Longs, dim: int, scales: Floats
    ) -> SparseGrad:
        """Sums rows int32[N] and encoded values of each rank in rank order, in memory of its own.

        pointers: int64[ranks, T + 1].
        """


class Fp32Codec:
    """A codec that sends values as they are."""

    name = "sparse"
    value_bytes = 4
    scale_rule = None

    def __init__(self, merge: Merge) -> None:
        self._merge = merge

    def absmax(self, grad: SparseGrad) -> Floats | None:
        return None

    def encode(self, grad: SparseGrad, scales: Floats, out: Bytes) -> None:
        layout = layout_of(grad, self.value_bytes)
        layout.rows(out)[:] = grad.rows.numpy()
        layout.values(out).view(np.float32)[:] = grad.values.numpy().reshape(-1)
        layout.clear_padding(out)

    def sent(self, grad: SparseGrad, scales: Floats, message: Bytes) -> Floats:
        return grad.values.numpy()

    def sum_rows(
        self, rows: Sequence[Ints], values: Sequence[Bytes], pointers: Longs, dim: int, scales: Floats
    ) -> SparseGrad:
        return self._merge(
            [
                SparseGrad(*map(torch.from_numpy, (pointer, own, part.view(np.float32).reshape(own.size, dim))))
                for pointer, own, part in zip(pointers, rows, values, strict=True)
            ]
        )


def require_finite(absmax: Floats, what: str, numbers: Sequence[int] = ()) -> None:
    """Raises the same error on every rank, naming the first group and rank whose absmax f32[ranks, G] is not finite.

    `numbers`: those of the groups; empty: they count from 0.
    """
    ranks, groups = np.nonzero(~np.isfinite(absmax))
    if not ranks.size:
        return
    group, rank = int(groups[0]), int(ranks[0])
    value, number = "NaN" if np.isnan(absmax[rank, group]) else "infinity", numbers[group] if numbers else group
    # All ranks look at the same numbers.
    raise unanimous(
        TrainingError(
            f"the gradient of {what} {number} holds {value} on rank {rank}: training has diverged; go back to an "
            "earlier checkpoint with a lower --train.learning-rate or some --train.warmup-steps"
        )
    )


def layout_of(grad: SparseGrad, value_bytes: int) -> MessageLayout:
    """Returns the layout of a gradient's message."""
    return MessageLayout(grad.rows.numel(), grad.values.shape[1], value_bytes)


def merge_messages(codec: Codec, messages: Sequence[Bytes], pointers: Longs, dim: int, scales: Floats) -> SparseGrad:
    """Sums the messages of all ranks in rank order, in memory of its own; pointers int64[ranks, T + 1]."""
    layouts = [MessageLayout(int(pointer[-1]), dim, codec.value_bytes) for pointer in pointers]
    parts = list(zip(layouts, messages, strict=True))
    rows = [layout.rows(message) for layout, message in parts]
    return codec.sum_rows(rows, [layout.values(message) for layout, message in parts], pointers, dim, scales)
