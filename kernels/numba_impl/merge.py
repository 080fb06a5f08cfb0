"""Merges the sparse gradients of several ranks: a k-way merge per table, equal rows summed in the ranks' order."""

from typing import NamedTuple

import numpy as np
from numba import prange

from .compiled import inlined, parallel, serial
from .memory import int_at, long_at, set_int, set_long
from .vector import LANES, add, load_part, splat, store_part

PARTS = 8
"""Pieces of a large table, cut by row, so that one table keeps several threads busy."""

_LARGE = 8192


class RankGrads(NamedTuple):
    """Addresses of the sparse gradients of K ranks, and scratch memory."""

    rows: int  # int64[K]: addresses of int32[N_k]
    pointer: int  # int64[K, T + 1], into each rank's rows
    values: int  # int64[K]: addresses of f32[N_k, D]
    cursors: int  # int64[T * PARTS, 2, K], scratch
    num_ranks: int
    num_tables: int
    dim: int


@inlined
def _pointer(grads: RankGrads, rank: int, table: int) -> int:
    return int(long_at(grads.pointer, rank * (grads.num_tables + 1) + table))


@inlined
def _lower_bound(rows: int, start: int, end: int, row: int) -> int:
    while start < end:
        middle = (start + end) // 2
        if int_at(rows, middle) < row:
            start = middle + 1
        else:
            end = middle
    return start


@serial
def _cut(grads: RankGrads, table: int, part: int, place: int) -> None:
    """place int64[K]: where each rank's rows of a part begin. Cuts are quantiles of the rank with the most rows."""
    most, most_rows, total = 0, -1, 0
    for rank in range(grads.num_ranks):
        size = _pointer(grads, rank, table + 1) - _pointer(grads, rank, table)
        total += size
        if size > most_rows:
            most, most_rows = rank, size
    inside = total >= _LARGE and 0 < part < PARTS
    row = 0
    if inside:
        row = int_at(long_at(grads.rows, most), _pointer(grads, most, table) + most_rows * part // PARTS)
    for rank in range(grads.num_ranks):
        start, end = _pointer(grads, rank, table), _pointer(grads, rank, table + 1)
        if inside:
            set_long(place, rank, _lower_bound(long_at(grads.rows, rank), start, end, row))
        else:
            set_long(place, rank, end if part > 0 else start)


@serial
def _begin(grads: RankGrads, item: int) -> int:
    """Cursors of a part: int64[2, K], the next entry of each rank and its end; returns their address."""
    at = grads.cursors + 16 * grads.num_ranks * item
    _cut(grads, item // PARTS, item % PARTS, at)
    _cut(grads, item // PARTS, item % PARTS + 1, at + 8 * grads.num_ranks)
    return at


@inlined
def _has(grads: RankGrads, at: int, rank: int, row: int) -> bool:
    """Whether `row` is what the rank has next."""
    place = long_at(at, rank)
    return bool(place < long_at(at, grads.num_ranks + rank) and int_at(long_at(grads.rows, rank), place) == row)


@serial
def _next_row(grads: RankGrads, at: int) -> int:
    """The smallest row that some rank has next, or -1."""
    smallest = -1
    for rank in range(grads.num_ranks):
        place = long_at(at, rank)
        if place < long_at(at, grads.num_ranks + rank):
            row = int_at(long_at(grads.rows, rank), place)
            if smallest < 0 or row < smallest:
                smallest = row
    return smallest


@serial
def _move_on(grads: RankGrads, at: int, row: int) -> None:
    """Every rank that has the row next goes past it."""
    for rank in range(grads.num_ranks):
        if _has(grads, at, rank, row):
            set_long(at, rank, long_at(at, rank) + 1)


@parallel
def count_merged(grads: RankGrads, count: int) -> None:
    """count int64[T * PARTS]: unique rows of each part."""
    for item in prange(grads.num_tables * PARTS):
        at = _begin(grads, item)
        found = 0
        row = _next_row(grads, at)
        while row >= 0:
            found += 1
            _move_on(grads, at, row)
            row = _next_row(grads, at)
        set_long(count, item, found)


@parallel
def write_merged(grads: RankGrads, first_entry: int, rows: int, values: int) -> None:
    """first_entry int64[T * PARTS + 1]: where the result of each part begins in rows int32[N] and values f32[N, D]."""
    for item in prange(grads.num_tables * PARTS):
        at = _begin(grads, item)
        for entry in range(long_at(first_entry, item), long_at(first_entry, item + 1)):
            row = _next_row(grads, at)
            set_int(rows, entry, row)
            _sum_ranks(grads, at, row, values + 4 * entry * grads.dim)
            _move_on(grads, at, row)


@serial
def _sum_ranks(grads: RankGrads, at: int, row: int, target: int) -> None:
    """target f32[D] = the sum over the ranks whose next row is `row`."""
    for k in range(0, grads.dim, LANES):
        summed = splat(np.float32(-0.0))  # the one that changes nothing, not even -0
        for rank in range(grads.num_ranks):
            if _has(grads, at, rank, row):
                index = long_at(at, rank) * grads.dim + k
                summed = add(summed, load_part(long_at(grads.values, rank), index, grads.dim - k))
        store_part(target, k, summed, grads.dim - k)
