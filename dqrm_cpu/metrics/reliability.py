"""How often rows were clicked beside what was predicted for them, in bins of the predicted logit.

The bins are the same for every evaluation, so that those of several can be laid over each other or added up. Like the
other metrics their sums depend on the multiset of rows alone, to the bit.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.metrics.calibration import sigmoid
from dqrm_cpu.metrics.weighted import WeightedRows

BINS_PER_UNIT = 4  # of the logit: a bin's odds grow by 28% from one end to the other
_LARGEST = 15 * BINS_PER_UNIT  # bins on either side of 0; the outermost hold whatever lies beyond them


@dataclass(frozen=True)
class Reliability:
    """Sums over the rows of each bin from the first to the last that has any; rows count as their weights say.

    Bin `first + k` holds the logits from `(first + k) / BINS_PER_UNIT` to the next bin's.
    """

    first: int = 0
    rows: tuple[float, ...] = ()
    clicks: tuple[float, ...] = ()
    predicted: tuple[float, ...] = ()  # sums of the predicted probabilities

    def __post_init__(self) -> None:
        sums = [*self.rows, *self.clicks, *self.predicted]
        if not len(self.rows) == len(self.clicks) == len(self.predicted) <= 2 * _LARGEST:
            raise ValueError("bins without all of their sums")
        if not all(0 <= value < math.inf for value in sums):
            raise ValueError("bins with sums that cannot be")


def reliability(
    logits: NDArray[np.float32], clicks: NDArray[np.bool_], weights: NDArray[np.float32] | None = None
) -> Reliability:
    """Sums rows with logits f32[N], clicks bool[N] and weights f32[N], in any order; None: each row counts once."""
    if weights is None:
        labelled = [_binned(np.sort(logits[chosen]), None) for chosen in (clicks, ~clicks)]
    else:
        sorted_rows = [WeightedRows(logits[chosen], weights[chosen]) for chosen in (clicks, ~clicks)]
        labelled = [_binned(part.logits, part.weights) for part in sorted_rows]
    (clicked, of_clicked), (others, of_others) = labelled
    rows, predicted = clicked + others, of_clicked + of_others
    some = np.flatnonzero(rows)
    if not some.size:
        return Reliability()
    shown = slice(some[0], some[-1] + 1)
    sums = (tuple(each[shown].tolist()) for each in (rows, clicked, predicted))
    return Reliability(int(some[0]) - _LARGEST, *sums)


def merged_bins(bins: Reliability, most: int) -> NDArray[np.float64]:
    """Merges neighbours into at most `most` bins of like size; returns their rows, clicks, predicted, f64[bins, 3]."""
    sums = np.array([bins.rows, bins.clicks, bins.predicted]).T
    least = sum(bins.rows) / most
    merged: list[NDArray[np.float64]] = []
    rest = np.zeros(3)
    for more in sums:
        rest = rest + more
        if rest[0] >= least > 0:
            merged.append(rest)
            rest = np.zeros(3)
    if rest[0] and merged:
        merged[-1] = merged[-1] + rest
    return np.array(merged).reshape(-1, 3)


def _binned(
    logits: NDArray[np.float32], weights: NDArray[np.float32] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sums the rows and their probabilities in every bin, f64[2 * _LARGEST] each; the logits are in rising order."""
    edges = (np.arange(1 - _LARGEST, _LARGEST) / BINS_PER_UNIT).astype(np.float32)
    bounds = [0, *np.searchsorted(logits, edges).tolist(), logits.size]
    rows, predicted = np.zeros(2 * _LARGEST), np.zeros(2 * _LARGEST)
    for number, (start, end) in enumerate(pairwise(bounds)):
        if start < end:
            probabilities = sigmoid(logits[start:end].astype(np.float64))
            rows[number] = end - start if weights is None else weights[start:end].sum(dtype=np.float64)
            predicted[number] = np.sum(probabilities if weights is None else probabilities * weights[start:end])
    return rows, predicted
