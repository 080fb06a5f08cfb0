"""The score of an ensemble, whoever asks for it: a trainer, a server, or a metric."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


def mean_logits(of_members: Iterable[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Returns the mean f32[n] of the logits f32[n] of each member, summed in FP64 and rounded once.

    Of one member they are its own, to the bit. One array after another is asked for, and none kept.
    """
    members = iter(of_members)
    first = next(members)
    sums, count = first.astype(np.float64), 1
    for logits in members:
        sums += logits
        count += 1
    if count == 1:
        return first
    mean: NDArray[np.float32] = (sums / count).astype(np.float32)
    return mean
