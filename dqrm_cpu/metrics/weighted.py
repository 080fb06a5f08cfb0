"""Figures of rows that count with weights of their own: AUC, and sums over the rows.

Rows are put in one order first, by logit and then by weight: every figure depends on the multiset of rows alone, to the
bit. Sums run in FP64.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

CHUNK = 1 << 20
"""Values in FP64 at a time, so that summing never doubles the memory of a large evaluation."""


class WeightedRows:
    """Rows of one label in one order: logits f32[n], ascending, and their weights f32[n], all above 0."""

    def __init__(self, logits: NDArray[np.float32], weights: NDArray[np.float32]) -> None:
        counted = weights > 0
        logits, weights = logits[counted], weights[counted]
        order = np.lexsort((weights, logits))
        self.logits, self.weights = logits[order], weights[order]
        # before[i]: the weight of the rows before row i, f64[n + 1].
        self.before = np.concatenate([np.zeros(1), np.cumsum(self.weights, dtype=np.float64)])

    @property
    def total(self) -> float:
        """The sum of all weights."""
        return float(self.before[-1])

    def sum_of(self, function: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> float:
        """Sums a function of the logits, each times its weight."""
        sums = []
        for start in range(0, self.logits.size, CHUNK):
            part = slice(start, start + CHUNK)
            sums.append(float(np.sum(function(self.logits[part].astype(np.float64)) * self.weights[part])))
        return math.fsum(sums)


def weighted_auc(positive: WeightedRows, negative: WeightedRows) -> float:
    """Returns the share of (click, non-click) pairs that are ranked rightly, a pair weighing the product of its two.

    Ties count half; NaN without clicks or non-clicks of any weight.
    """
    pairs = positive.total * negative.total
    if not pairs:
        return math.nan
    twice_wins = []
    for start in range(0, positive.logits.size, CHUNK):
        part = slice(start, start + CHUNK)
        below = negative.before[negative.logits.searchsorted(positive.logits[part], side="left")]
        not_above = negative.before[negative.logits.searchsorted(positive.logits[part], side="right")]
        twice_wins.append(float(np.sum((below + not_above) * positive.weights[part])))
    return min(1.0, math.fsum(twice_wins) / (2 * pairs))
