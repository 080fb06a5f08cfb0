"""DeLong's test of a difference between two AUC of the same rows, and of its mean over repetitions.

The AUC is the mean over clicks of the share of non-clicks below each, and the mean over non-clicks of the share of
clicks above: its placements. How they spread says how the AUC would with other rows (DeLong et al. 1988).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Placements(NamedTuple):
    """Where the rows of one label lie among those of the other; ties count half."""

    of_clicks: Floats  # f64[m]: the share of non-clicks below each click
    of_others: Floats  # f64[n]: the share of clicks above each non-click

    @property
    def auc(self) -> float:
        """The chance that a click ranks above a non-click."""
        return float(self.of_clicks.mean())

    def minus(self, other: "Placements") -> "Placements":
        """Returns the differences, row by row, of which the mean is that of the AUC."""
        return Placements(self.of_clicks - other.of_clicks, self.of_others - other.of_others)

    @property
    def variance(self) -> float:
        """The variance of the AUC, or of a difference, over samples of rows; NaN of fewer than two of a label."""
        if min(self.of_clicks.size, self.of_others.size) < 2:
            return math.nan
        of_clicks, of_others = (float(part.var(ddof=1)) / part.size for part in self)
        return of_clicks + of_others


def placements(logits: NDArray[np.float32], clicks: NDArray[np.bool_]) -> Placements:
    """Finds the placements of logits f32[N] with labels bool[N], by sorting: O(N log N)."""
    positive, negative = logits[clicks], logits[~clicks]
    return Placements(_share_below(positive, negative), 1 - _share_below(negative, positive))


def rows_p(differences: Sequence[Placements], *, same_rows: bool) -> float:
    """Tests, two-sided, that the mean of these differences is 0 over samples of rows; NaN where nothing differs.

    Repetitions on the `same_rows` are averaged row by row first, for a row that is hard is hard in all of them; those
    on rows of their own add up their variances.
    """
    if same_rows:
        parts = zip(*differences, strict=True)
        mean = Placements(*(np.mean(np.stack(part), axis=0) for part in parts))
        variance = mean.variance
    else:
        variance = sum(one.variance for one in differences) / len(differences) ** 2
    difference = float(np.mean([one.of_clicks.mean() for one in differences]))
    if not variance > 0:
        return math.nan
    return math.erfc(abs(difference) / math.sqrt(2 * variance))


def _share_below(values: NDArray[np.float32], others: NDArray[np.float32]) -> Floats:
    ranked = np.sort(others)
    twice = ranked.searchsorted(values, side="left") + ranked.searchsorted(values, side="right")
    return np.asarray(twice / (2 * others.size))
