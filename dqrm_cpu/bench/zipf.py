"""Ids that follow a bounded Zipf law, as clicks do: few rows are hot, and hot rows are not neighbours."""

import math

import numpy as np
from numpy.typing import NDArray

EXPONENT = 1.05

_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


def zipf_ranks(num_rows: int, uniform: NDArray[np.float64], exponent: float = EXPONENT) -> NDArray[np.int64]:
    """Ranks 0 to num_rows - 1, rank k with probability proportional to (k + 1) ** -exponent.

    By the inverse of the distribution, from numbers of [0, 1).
    """
    distribution = np.arange(1, num_rows + 1, dtype=np.float64)
    np.power(distribution, -exponent, out=distribution)
    np.cumsum(distribution, out=distribution)
    ranks: NDArray[np.int64] = np.searchsorted(distribution, uniform * distribution[-1], side="right")
    return np.minimum(ranks, num_rows - 1)  # rounding of the product may reach the end


def scatter(ranks: NDArray[np.int64], num_rows: int) -> NDArray[np.int64]:
    """Rows of ranks: a fixed permutation of the table that lays the hot rows far from each other.

    Steps of the golden ratio around the table keep the first k ranks at least about num_rows / (2.2 k) apart.
    """
    return ranks * _stride(num_rows) % num_rows


def _stride(num_rows: int) -> int:
    """The next number above the golden part of the table that shares no factor with it: then no row is met twice."""
    stride = max(1, round(num_rows * _GOLDEN_RATIO))
    while math.gcd(stride, num_rows) != 1:
        stride += 1
    return stride
