"""How fast this machine reads the tables at all: floors for the kernels, written with numba as they are."""

from typing import Any

import numpy as np
from numba import prange

from dqrm_cpu.kernels.numba_impl.arena import Arena, prefetch_row
from dqrm_cpu.kernels.numba_impl.compiled import parallel, serial
from dqrm_cpu.kernels.numba_impl.memory import int_at, long_at
from dqrm_cpu.kernels.numba_impl.vector import LANES, add, load_part, splat, total

_WORDS_PER_ITEM = 1 << 17
_SAMPLES_PER_ITEM = 64
_AHEAD = 16


@parallel
def read_all(words: Any) -> int:
    """The sum of words int64[N]: every byte once. Of integers, so that the compiler may sum in any order."""
    summed = 0
    for item in prange((words.size + _WORDS_PER_ITEM - 1) // _WORDS_PER_ITEM):
        summed += _sum(words[item * _WORDS_PER_ITEM : (item + 1) * _WORDS_PER_ITEM])
    return summed


@serial
def _sum(words: Any) -> int:
    summed = 0
    for i in range(words.size):
        summed += words[i]
    return summed


@parallel
def read_rows(arena: Arena, ids: int, batch: int) -> Any:
    """The sum, a float, of all elements of the rows that ids int32[T, B], an address, name."""
    summed = np.float32(0)
    num_chunks = (batch + _SAMPLES_PER_ITEM - 1) // _SAMPLES_PER_ITEM
    for item in prange(num_chunks * arena.num_tables):
        chunk, table = item // arena.num_tables, item % arena.num_tables
        start, end = chunk * _SAMPLES_PER_ITEM, min(batch, (chunk + 1) * _SAMPLES_PER_ITEM)
        summed += _sum_rows(arena, long_at(arena.first_row, table), ids + 4 * table * batch, start, end)
    return summed


@serial
def _sum_rows(arena: Arena, first_row: int, ids: int, start: int, end: int) -> Any:
    dim, summed = arena.dim, splat(np.float32(0))
    for b in range(start, min(start + _AHEAD, end)):
        prefetch_row(arena.weight, first_row + int_at(ids, b), dim)
    for b in range(start, end):
        if b + _AHEAD < end:
            prefetch_row(arena.weight, first_row + int_at(ids, b + _AHEAD), dim)
        row = (first_row + int_at(ids, b)) * dim
        for k in range(0, dim, LANES):
            summed = add(summed, load_part(arena.weight, row + k, dim - k))
    return total(summed)
