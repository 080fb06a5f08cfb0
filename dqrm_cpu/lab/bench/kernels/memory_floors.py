"""How fast this machine moves what a kernel must move at all: floors, written with numba as the kernels are."""

from typing import Any

import numpy as np

from dqrm_cpu.kernels.jit.arena import Arena, prefetch_row
from dqrm_cpu.kernels.jit.compile import kernel, serial, thorough_kernel
from dqrm_cpu.kernels.jit.memory import int_at, long_at, prefetch_byte, word_at
from dqrm_cpu.kernels.jit.simd import LANES, add, load_part, splat, store_part, total
from dqrm_cpu.kernels.jit.threads import on_all_threads

_WORDS_PER_ITEM = 1 << 17
_FLOATS_PER_ITEM = 1 << 12
_SAMPLES_PER_ITEM = 64
_AHEAD = 16


@thorough_kernel
def read_all(words: Any) -> int:
    """Returns the sum of words int64[N]: every byte once. Of integers, so that the compiler may sum in any order."""
    sums = np.empty((words.size + _WORDS_PER_ITEM - 1) // _WORDS_PER_ITEM, np.int64)
    on_all_threads(sums.size, _sum_words, (words, sums))
    return int(sums.sum())


@kernel
def read_packed_rows(codes: int, row_bytes: int, ids: int, bag: int, num_bags: int, out: int, dim: int) -> None:
    """Reads eight bytes at each row of ids int32[num_bags, bag], and writes as many floats, f32[num_bags, dim]."""
    places = (codes, row_bytes, ids, bag, num_bags, out, dim)
    on_all_threads((num_bags + _SAMPLES_PER_ITEM - 1) // _SAMPLES_PER_ITEM, _read_bags, places)


@serial
def _read_bags(codes: int, row_bytes: int, ids: int, bag: int, num_bags: int, out: int, dim: int, item: int) -> None:
    first, end = item * _SAMPLES_PER_ITEM, min(num_bags, (item + 1) * _SAMPLES_PER_ITEM)
    last, ahead = end * bag, 2 * _AHEAD
    for at in range(first * bag, min(first * bag + ahead, last)):
        prefetch_byte(codes, int_at(ids, at) * row_bytes)
    for number in range(first, end):
        word = np.uint64(0)
        for at in range(number * bag, (number + 1) * bag):
            prefetch_byte(codes, int_at(ids, min(at + ahead, last - 1)) * row_bytes)
            word += word_at(codes, int_at(ids, at) * row_bytes)
        floats = splat(np.float32(word))
        for k in range(0, dim, LANES):
            store_part(out, number * dim + k, floats, dim - k)


@serial
def _sum_words(words: Any, sums: Any, item: int) -> None:
    stretch, summed = words[item * _WORDS_PER_ITEM : (item + 1) * _WORDS_PER_ITEM], 0
    for i in range(stretch.size):  # from 0 on: an index that might be negative would keep LLVM from vectors
        summed += stretch[i]
    sums[item] = summed


@kernel
def read_rows(arena: Arena, ids: int, batch: int) -> Any:
    """Returns the sum, a float, of all elements of the rows that ids int32[T, B], an address, name."""
    num_chunks = (batch + _SAMPLES_PER_ITEM - 1) // _SAMPLES_PER_ITEM
    sums = np.empty(num_chunks * arena.num_tables, np.float32)
    on_all_threads(sums.size, _sum_rows, (arena, ids, batch, sums))
    return sums.sum()


@serial
def _sum_rows(arena: Arena, all_ids: int, batch: int, sums: Any, item: int) -> None:
    chunk, table = item // arena.num_tables, item % arena.num_tables
    start, end = chunk * _SAMPLES_PER_ITEM, min(batch, (chunk + 1) * _SAMPLES_PER_ITEM)
    first_row, ids = long_at(arena.first_row, table), all_ids + 4 * table * batch
    dim, summed = arena.dim, splat(np.float32(0))
    for b in range(start, min(start + _AHEAD, end)):
        prefetch_row(arena.weight, first_row + int_at(ids, b), dim)
    for b in range(start, end):
        if b + _AHEAD < end:
            prefetch_row(arena.weight, first_row + int_at(ids, b + _AHEAD), dim)
        row = (first_row + int_at(ids, b)) * dim
        for k in range(0, dim, LANES):
            summed = add(summed, load_part(arena.weight, row + k, dim - k))
    sums[item] = total(summed)


@kernel
def rewrite_rows(arena: Arena, ids: int, batch: int, grad: int, reads_grad: bool) -> Any:
    """Reads grad [B, 1 + T, D], of which only the first row unless asked, and each row that ids int32[T, B] name, and
    writes the row as it was.

    A table belongs to one thread, so that no row goes back and forth between caches. The sum is returned.
    """
    sums = np.empty(arena.num_tables, np.float32)
    on_all_threads(arena.num_tables, _rewrite_table, (arena, ids, batch, grad, int(reads_grad), sums))
    return sums.sum()


@serial
def _rewrite_table(arena: Arena, all_ids: int, batch: int, grad: int, stride: int, sums: Any, table: int) -> None:
    dim, first_row, summed = arena.dim, long_at(arena.first_row, table), splat(np.float32(0))
    ids = all_ids + 4 * table * batch
    for b in range(batch):
        prefetch_row(arena.weight, first_row + int_at(ids, min(b + _AHEAD, batch - 1)), dim)
        row, of_sample = (first_row + int_at(ids, b)) * dim, stride * (b * (1 + arena.num_tables) + 1 + table) * dim
        for k in range(0, dim, LANES):
            values = load_part(arena.weight, row + k, dim - k)
            summed = add(summed, add(values, load_part(grad, of_sample + k, dim - k)))
            store_part(arena.weight, row + k, values, dim - k)
    sums[table] = total(summed)


@kernel
def read_and_write(source: int, size: int, target: int, written: int) -> None:
    """Reads f32[size] and writes f32[written], in stretches side by side, as a kernel over samples does."""
    items = (size + _FLOATS_PER_ITEM - 1) // _FLOATS_PER_ITEM
    on_all_threads(items, _sum_and_fill, (source, size, target, written, items))


@serial
def _sum_and_fill(source: int, size: int, target: int, written: int, items: int, item: int) -> None:
    summed = splat(np.float32(0))
    end, last = size * (item + 1) // items, written * (item + 1) // items
    for k in range(size * item // items, end, LANES):
        summed = add(summed, load_part(source, k, end - k))
    for k in range(written * item // items, last, LANES):
        store_part(target, k, summed, last - k)
