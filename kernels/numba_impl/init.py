"""Initial weights from a counter-based hash: the same for any number of threads, which also place the pages."""

import numpy as np
from numba import prange
from numpy.typing import NDArray

from .compiled import parallel, serial

_ROWS_PER_ITEM = 1 << 10


@serial
def _row_key(seed_word: np.uint64, row: int) -> np.uint64:
    """splitmix64; `reference.uniform_value` spells the hash out."""
    z = seed_word + np.uint64(row) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@serial
def _fill_row(key: np.uint64, scale: np.float32, row: NDArray[np.float32]) -> None:
    low, high = np.uint32(key & np.uint64(0xFFFFFFFF)), np.uint32(key >> np.uint64(32))
    for c in range(row.size):
        x = low ^ np.uint32(np.uint32(c) * np.uint32(0x9E3779B9))
        x = np.uint32(np.uint32(x ^ (x >> np.uint32(16))) * np.uint32(0x21F0AAAD))
        x = np.uint32(x ^ high)
        x = np.uint32(np.uint32(x ^ (x >> np.uint32(15))) * np.uint32(0x735A2D97))
        x = np.uint32(x ^ (x >> np.uint32(15)))
        odd = np.int32(2 * np.int32(x >> np.uint32(9)) + 1 - 8388608)
        row[c] = np.float32(odd) * scale


@parallel
def init_uniform(
    weight: NDArray[np.float32], first_row: NDArray[np.int64], scale: NDArray[np.float32], seed_word: np.uint64
) -> None:
    """scale [T]: bound over 2^23 of each table."""
    rows = weight.shape[0]
    for item in prange((rows + _ROWS_PER_ITEM - 1) // _ROWS_PER_ITEM):
        start = item * _ROWS_PER_ITEM
        table = np.searchsorted(first_row, start, side="right") - 1
        for row in range(start, min(rows, start + _ROWS_PER_ITEM)):
            while row >= first_row[table + 1]:
                table += 1
            _fill_row(_row_key(seed_word, row), scale[table], weight[row])
