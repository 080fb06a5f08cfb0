"""Sparse gradients of several ranks to their sum: rows merged in order, equal rows summed in the order of the ranks.

First the rows are found, with the entry of each rank that belongs to them; then whatever travelled for them is summed.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..jit.compile import inlined, kernel, serial
from ..jit.memory import float_at, int_at, long_at, set_int, set_long
from ..jit.simd import LANES, add, load_part, multiply, splat, store_part
from ..jit.simd_integers import add_words, load_codes, no_words, to_floats
from ..jit.threads import on_all_threads
from ..types import SparseGrad

PARTS = 8
"""Pieces of a large table, cut by row, so that one table keeps several threads busy."""

_ENTRIES_PER_ITEM = 512

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
    """Addresses of the rows found. A part begins where those before it would end if no two ranks shared a row."""

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
    """Writes place int64[K], where each rank's rows of a part begin: quantiles of the rank with the most rows."""
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
    """Fills `found` with the rows that any rank has."""
    on_all_threads(ranks.num_tables * PARTS, _find_part, (ranks, found))


class Sum(NamedTuple):
    """Addresses of the result, and where its parts begin."""

    first_entry: int  # int64[T * PARTS + 1]
    rows: int  # int32[N]
    values: int  # f32[N, D]
    dim: int


class Sent(NamedTuple):
    """Addresses of what K ranks sent for their rows: f32 values, or integer codes of scales."""

    places: int  # int64[K]: addresses of f32[N_k, D], or of codes [N_k, D]
    code_bytes: int  # 1, 2 or 4; 0: values
    scales: int  # f32[T]; 0: values


@kernel
def sum_rows(ranks: RankRows, found: FoundRows, sent: Sent, result: Sum) -> None:
    """Fills `result`: values summed in the order of the ranks, or codes in int32, times their table's scale."""
    num_rows = long_at(result.first_entry, ranks.num_tables * PARTS)
    items = (num_rows + _ENTRIES_PER_ITEM - 1) // _ENTRIES_PER_ITEM
    on_all_threads(items, _sum_entries, (ranks, found, sent, result, num_rows))


@serial
def _sum_entries(ranks: RankRows, found: FoundRows, sent: Sent, result: Sum, num_rows: int, item: int) -> None:
    first, part = item * _ENTRIES_PER_ITEM, 0
    for entry in range(first, min(num_rows, first + _ENTRIES_PER_ITEM)):
        while entry >= long_at(result.first_entry, part + 1):
            part += 1
        at = long_at(found.start, part) + entry - long_at(result.first_entry, part)
        set_int(result.rows, entry, int_at(found.rows, at))
        sources, target = found.sources + 4 * ranks.num_ranks * at, result.values + 4 * entry * result.dim
        if sent.code_bytes:
            _sum_codes(ranks.num_ranks, sources, sent, result.dim, float_at(sent.scales, part // PARTS), target)
        else:
            _sum_values(ranks.num_ranks, sources, sent.places, result.dim, target)


@serial
def _sum_values(num_ranks: int, sources: int, places: int, dim: int, target: int) -> None:
    """Writes to target f32[D] the sum over the ranks that have the row."""
    for k in range(0, dim, LANES):
        summed = splat(np.float32(-0.0))  # the one that changes nothing, not even -0
        for rank in range(num_ranks):
            source = int_at(sources, rank)
            if source >= 0:
                summed = add(summed, load_part(long_at(places, rank), source * dim + k, dim - k))
        store_part(target, k, summed, dim - k)


@serial
def _sum_codes(num_ranks: int, sources: int, sent: Sent, dim: int, scale: np.float32, target: int) -> None:
    """Writes to target f32[D] the sum over the ranks that have the row, in int32, times the scale."""
    for k in range(0, dim, LANES):
        summed = no_words()
        for rank in range(num_ranks):
            source = int_at(sources, rank)
            if source >= 0:
                codes = load_codes(long_at(sent.places, rank), source * dim + k, dim - k, sent.code_bytes)
                summed = add_words(summed, codes)
        store_part(target, k, multiply(to_floats(summed), splat(scale)), dim - k)


class MergedRows:
    """The rows that K ranks have together: rows int32[N_k] of each, pointer int64[K, T + 1] into them.

    It finds the rows before anything is summed, and holds the arrays whose addresses the kernels take.
    """

    def __init__(self, rows: Sequence[Tensor], pointer: Tensor) -> None:
        self._held = [part.contiguous() for part in rows]
        self._pointer = pointer.contiguous()
        num_ranks, num_tables = len(rows), pointer.shape[1] - 1
        room, num_parts = sum(part.numel() for part in rows), num_tables * PARTS
        self._places = _places(self._held)
        self._ranks = RankRows(self._places.data_ptr(), self._pointer.data_ptr(), num_ranks, num_tables)
        self._entries = torch.empty(room * (1 + num_ranks), dtype=torch.int32)
        self._start = torch.empty(num_parts, dtype=torch.int64)
        self._cursors = torch.empty(num_parts, 3, num_ranks, dtype=torch.int64)
        self._first_entry = torch.zeros(num_parts + 1, dtype=torch.int64)
        self._found = FoundRows(
            self._entries.data_ptr(),
            self._entries[room:].data_ptr(),
            self._start.data_ptr(),
            self._first_entry[1:].data_ptr(),
            self._cursors.data_ptr(),
        )
        find_rows(self._ranks, self._found)
        torch.cumsum(self._first_entry, 0, out=self._first_entry)

    def sum_values(self, values: Sequence[Tensor]) -> SparseGrad:
        """Sums f32[N_k, D] of each rank, in the order of the ranks."""
        held = [part.contiguous() for part in values]
        places = _places(held)
        return self._sum(Sent(places.data_ptr(), 0, 0), held[0].shape[1])

    def sum_codes(self, sent: Sequence[Tensor], dim: int, code_bytes: int, scales: Tensor) -> SparseGrad:
        """Sums codes [N_k, D] of each rank, given as bytes, in int32; times their table's scale f32[T]."""
        places, scales = _places(sent), scales.contiguous()
        return self._sum(Sent(places.data_ptr(), code_bytes, scales.data_ptr()), dim)

    def _sum(self, sent: Sent, dim: int) -> SparseGrad:
        rows = torch.empty(int(self._first_entry[-1]), dtype=torch.int32)
        grad = SparseGrad(self._first_entry[::PARTS].clone(), rows, torch.empty(rows.numel(), dim))
        places = (self._first_entry.data_ptr(), grad.rows.data_ptr(), grad.values.data_ptr())
        sum_rows(self._ranks, self._found, sent, Sum(*places, dim))
        return grad


def _places(tensors: Sequence[Tensor]) -> Tensor:
    return torch.tensor([tensor.data_ptr() for tensor in tensors])
