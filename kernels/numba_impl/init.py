"""Initial weights from a counter-based hash: the same for any number of threads, which also place the pages."""

import numpy as np
from numba import prange

from .arena import Arena
from .compiled import inlined, parallel, serial
from .memory import float_at, long_at, set_float

_ROWS_PER_ITEM = 1 << 12


@inlined
def _row_key(seed_word: np.uint64, row: int) -> np.uint64:
    """splitmix64; `reference.uniform_value` spells the hash out."""
    z = seed_word + np.uint64(row) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@inlined
def _fill_row(key: np.uint64, scale: np.float32, place: int, dim: int) -> None:
    low, high = np.uint32(key & np.uint64(0xFFFFFFFF)), np.uint32(key >> np.uint64(32))
    for c in range(dim):
        x = low ^ np.uint32(np.uint32(c) * np.uint32(0x9E3779B9))
        x = np.uint32(np.uint32(x ^ (x >> np.uint32(16))) * np.uint32(0x21F0AAAD))
        x = np.uint32(x ^ high)
        x = np.uint32(np.uint32(x ^ (x >> np.uint32(15))) * np.uint32(0x735A2D97))
        x = np.uint32(x ^ (x >> np.uint32(15)))
        odd = np.int32(2 * np.int32(x >> np.uint32(9)) + 1 - 8388608)
        set_float(place, c, np.float32(odd) * scale)


@parallel
def init_uniform(arena: Arena, scale: int, seed_word: np.uint64) -> None:
    """scale f32[T]: each table's bound over 2^23."""
    rows = long_at(arena.first_row, arena.num_tables)
    for item in prange((rows + _ROWS_PER_ITEM - 1) // _ROWS_PER_ITEM):
        _fill_rows(arena, scale, seed_word, item * _ROWS_PER_ITEM, min(rows, (item + 1) * _ROWS_PER_ITEM))


@serial
def _fill_rows(arena: Arena, scale: int, seed_word: np.uint64, start: int, end: int) -> None:
    table = 0
    for row in range(start, end):
        while row >= long_at(arena.first_row, table + 1):
            table += 1
        place = arena.weight + 4 * row * arena.dim
        _fill_row(_row_key(seed_word, row), float_at(scale, table), place, arena.dim)
