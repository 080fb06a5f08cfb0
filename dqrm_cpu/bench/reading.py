"""How fast this machine moves what a kernel must move at all: floors, written with numba as the kernels are."""

from typing import Any

import numpy as np
from numba import prange

from dqrm_cpu.kernels.numba_impl.arena import Arena, prefetch_row
from dqrm_cpu.kernels.numba_impl.compiled import parallel, serial
from dqrm_cpu.kernels.numba_impl.memory import int_at, long_at
from dqrm_cpu.kernels.numba_impl.vector import LANES, add, load_part, splat, store_part, total

_WORDS_PER_ITEM = 1 << 17
_FLOATS_PER_ITEM = 1 << 12
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


@parallel
def rewrite_rows(arena: Arena, ids: int, batch: int, grad: int) -> Any:
    """Reads grad [B, 1 + T, D] and each row that ids int32[T, B] name, and writes the row as it was.

    A table belongs to one thread, so that no row goes back and forth between caches. The sum is returned.
    """
    summed = np.float32(0)
    for table in prange(arena.num_tables):
        summed += _rewrite_table(arena, table, ids + 4 * table * batch, batch, grad)
    return summed


@serial
def _rewrite_table(arena: Arena, table: int, ids: int, batch: int, grad: int) -> Any:
    dim, first_row, summed = arena.dim, long_at(arena.first_row, table), splat(np.float32(0))
    for b in range(batch):
        prefetch_row(arena.weight, first_row + int_at(ids, min(b + _AHEAD, batch - 1)), dim)
        row, of_sample = (first_row + int_at(ids, b)) * dim, (b * (1 + arena.num_tables) + 1 + table) * dim
        for k in range(0, dim, LANES):
            values = load_part(arena.weight, row + k, dim - k)
            summed = add(summed, add(values, load_part(grad, of_sample + k, dim - k)))
            store_part(arena.weight, row + k, values, dim - k)
    return total(summed)


@parallel
def read_and_write(source: int, size: int, target: int, written: int) -> None:
    """Reads f32[size] and writes f32[written], in stretches side by side, as a kernel over samples does."""
    items = (size + _FLOATS_PER_ITEM - 1) // _FLOATS_PER_ITEM
    for item in prange(items):
        start, end = size * item // items, size * (item + 1) // items
        first, last = written * item // items, written * (item + 1) // items
        _sum_and_fill(source + 4 * start, end - start, target + 4 * first, last - first)


@serial
def _sum_and_fill(source: int, size: int, target: int, written: int) -> None:
    summed = splat(np.float32(0))
    for k in range(0, size, LANES):
        summed = add(summed, load_part(source, k, size - k))
    for k in range(0, written, LANES):
        store_part(target, k, summed, written - k)
