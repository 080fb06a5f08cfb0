"""Sparse gradients of several ranks to their sum: rows merged in order, equal rows summed in the order of the ranks.

First the rows are found, with the entry of each rank that belongs to them; then whatever travelled for them is summed.
"""

from typing import NamedTuple

import numpy as np

from .compiled import inlined, kernel, serial
from .memory import int_at, long_at, set_int, set_long
from .threads import on_all_threads
from .vector import LANES, add, load_part, splat, store_part

PARTS = 8
"""Pieces of a large table, cut by row, so that one table keeps several threads busy."""

ENTRIES_PER_ITEM = 512

_LARGE = 8192
_GONE = np.int64(1) << 40
"""Above every row: what a rank has next when it has no more."""


class RankRows(NamedTuple):
    """Addresses of the rows of K ranks, which ascend within each table."""

    rows: int  # int64[K]: addresses of int32[N_k]
    pointer: int  # int64[K, T + 1], into each rank's rows
    num_ranks: int
    num_tables: int


class FoundRows(NamedTuple):
    """Addresses. A part begins where those before it would end if no two ranks shared a row."""

    rows: int  # int32[sum of N_k], unique within a table, ascending
    sources: int  # int32[sum of N_k, K]: the entry of each rank with this row, or -1
    start: int  # int64[T * PARTS], into both
    num_rows: int  # int64[T * PARTS], of each part
    cursors: int  # int64[T * PARTS, 3, K], scratch


@inlined
def _pointer(ranks: RankRows, rank: int, table: int) -> int:
    return int(long_at(ranks.pointer, rank * (ranks.num_tables + 1) + table))


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
def _cut(ranks: RankRows, table: int, part: int, place: int) -> None:
    """place int64[K]: where each rank's rows of a part begin. Cuts are quantiles of the rank with the most rows."""
    most, most_rows, total = 0, -1, 0
    for rank in range(ranks.num_ranks):
        size = _pointer(ranks, rank, table + 1) - _pointer(ranks, rank, table)
        total += size
        if size > most_rows:
            most, most_rows = rank, size
    inside = total >= _LARGE and 0 < part < PARTS
    row = 0
    if inside:
        row = int_at(long_at(ranks.rows, most), _pointer(ranks, most, table) + most_rows * part // PARTS)
    for rank in range(ranks.num_ranks):
        start, end = _pointer(ranks, rank, table), _pointer(ranks, rank, table + 1)
        if inside:
            set_long(place, rank, _lower_bound(long_at(ranks.rows, rank), start, end, row))
        else:
            set_long(place, rank, end if part > 0 else start)


@inlined
def _set_next(ranks: RankRows, rank: int, place: int, end: int, heads: int) -> None:
    """Notes the row at `place` as what the rank has next."""
    row = _GONE
    if place < end:
        row = int_at(long_at(ranks.rows, rank), place)
    set_long(heads, rank, row)


@serial
def _find_part(ranks: RankRows, found: FoundRows, item: int) -> None:
    num_ranks = ranks.num_ranks
    places = found.cursors + 24 * num_ranks * item
    ends, heads = places + 8 * num_ranks, places + 16 * num_ranks
    _cut(ranks, item // PARTS, item % PARTS, places)
    _cut(ranks, item // PARTS, item % PARTS + 1, ends)
    start = 0
    for rank in range(num_ranks):
        start += long_at(places, rank)
        _set_next(ranks, rank, long_at(places, rank), long_at(ends, rank), heads)
    entry = start
    while True:
        row = _GONE
        for rank in range(num_ranks):
            row = min(row, long_at(heads, rank))
        if row == _GONE:
            break
        for rank in range(num_ranks):
            place = long_at(places, rank)
            if long_at(heads, rank) == row:
                set_int(found.sources, entry * num_ranks + rank, place)
                set_long(places, rank, place + 1)
                _set_next(ranks, rank, place + 1, long_at(ends, rank), heads)
            else:
                set_int(found.sources, entry * num_ranks + rank, -1)
        set_int(found.rows, entry, row)
        entry += 1
    set_long(found.start, item, start)
    set_long(found.num_rows, item, entry - start)


@kernel
def find_rows(ranks: RankRows, found: FoundRows) -> None:
    """Fills `found`."""
    on_all_threads(ranks.num_tables * PARTS, _find_part, (ranks, found))


class Sum(NamedTuple):
    """Addresses of the result, and where its parts begin."""

    first_entry: int  # int64[T * PARTS + 1]
    rows: int  # int32[N]
    values: int  # f32[N, D]
    dim: int


@inlined
def part_of(result: Sum, entry: int, earlier: int) -> int:
    """The part that an entry of the sum lies in; `earlier`: that of one before."""
    part = earlier
    while entry >= long_at(result.first_entry, part + 1):
        part += 1
    return part


@inlined
def place_row(ranks: RankRows, found: FoundRows, result: Sum, part: int, entry: int) -> int:
    """Writes the row of an entry of the sum, which lies in a part; returns the address of its sources int32[K]."""
    at = long_at(found.start, part) + entry - long_at(result.first_entry, part)
    set_int(result.rows, entry, int_at(found.rows, at))
    return int(found.sources + 4 * ranks.num_ranks * at)


@kernel
def sum_values(ranks: RankRows, found: FoundRows, sent: int, result: Sum) -> None:
    """Fills `result` from what was found; sent int64[K]: addresses of f32[N_k, D]."""
    num_rows = long_at(result.first_entry, ranks.num_tables * PARTS)
    items = (num_rows + ENTRIES_PER_ITEM - 1) // ENTRIES_PER_ITEM
    on_all_threads(items, _sum_entries, (ranks, found, sent, result, num_rows))


@serial
def _sum_entries(ranks: RankRows, found: FoundRows, sent: int, result: Sum, num_rows: int, item: int) -> None:
    first, part = item * ENTRIES_PER_ITEM, 0
    for entry in range(first, min(num_rows, first + ENTRIES_PER_ITEM)):
        part = part_of(result, entry, part)
        sources = place_row(ranks, found, result, part, entry)
        _sum_ranks(ranks.num_ranks, sources, sent, result.dim, result.values + 4 * entry * result.dim)


@serial
def _sum_ranks(num_ranks: int, sources: int, sent: int, dim: int, target: int) -> None:
    """target f32[D] = the sum over the ranks that have the row."""
    for k in range(0, dim, LANES):
        summed = splat(np.float32(-0.0))  # the one that changes nothing, not even -0
        for rank in range(num_ranks):
            source = int_at(sources, rank)
            if source >= 0:
                summed = add(summed, load_part(long_at(sent, rank), source * dim + k, dim - k))
        store_part(target, k, summed, dim - k)
