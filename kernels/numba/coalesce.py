"""From a batch's pooled gradient to a sparse one: lookups sorted by row, gradients of equal rows summed in order."""

from typing import NamedTuple

import numpy as np

from ..jit.arena import Arena
from ..jit.compile import kernel, serial
from ..jit.memory import int_at, long_at, set_int, set_long
from ..jit.simd import LANES, add, splat, store_part
from ..jit.threads import on_all_threads
from .lookups import Lookups, Pooled, divisor, gradient_part, pooled_element, prefetch_pooled

_RADIX_BITS = 8
_DIGITS = 1 << _RADIX_BITS
_ROWS_PER_ITEM = 256
_AHEAD = 16


class Sorted(NamedTuple):
    """Addresses: the lookups of every table sorted by row, stably; the part of a table lies where its ids do."""

    row: int  # int32[N]
    position: int  # int32[N], into the ids
    spare_row: int  # int32[N], scratch
    spare_position: int  # int32[N], scratch
    start: int  # int64[N]: per unique row of the table, where its lookups begin
    num_unique: int  # int64[T]
    digits: int  # int64[T, 256], scratch


@kernel
def sort_lookups(arena: Arena, lookups: Lookups, ordered: Sorted) -> None:
    """Fills `ordered`."""
    on_all_threads(arena.num_tables, _sort_table, (arena, lookups, ordered))


@serial
def _sort_table(arena: Arena, lookups: Lookups, ordered: Sorted, table: int) -> None:
    start, end = long_at(lookups.table_start, table), long_at(lookups.table_start, table + 1)
    for i in range(start, end):
        set_int(ordered.row, i, int_at(lookups.ids, i))
        set_int(ordered.position, i, i)
    largest_row = long_at(arena.first_row, table + 1) - long_at(arena.first_row, table) - 1
    _radix_sort(ordered, start, end, largest_row, ordered.digits + 8 * _DIGITS * table)
    count = 0
    for i in range(start, end):
        if i == start or int_at(ordered.row, i) != int_at(ordered.row, i - 1):
            set_long(ordered.start, start + count, i)
            count += 1
    set_long(ordered.num_unique, table, count)


@serial
def _radix_sort(ordered: Sorted, start: int, end: int, largest_row: int, digits: int) -> None:
    """Sorts entries start to end stably, whose rows are 0 to largest_row. `digits`: scratch int64[256]."""
    for shift in range(0, 32, _RADIX_BITS):
        if largest_row >> shift == 0:
            return
        for digit in range(_DIGITS):
            set_long(digits, digit, 0)
        for i in range(start, end):
            digit = (int_at(ordered.row, i) >> shift) & (_DIGITS - 1)
            set_long(digits, digit, long_at(digits, digit) + 1)
        place = start
        for digit in range(_DIGITS):
            count = long_at(digits, digit)
            set_long(digits, digit, place)
            place += count
        for i in range(start, end):
            digit = (int_at(ordered.row, i) >> shift) & (_DIGITS - 1)
            place = long_at(digits, digit)
            set_long(digits, digit, place + 1)
            set_int(ordered.spare_row, place, int_at(ordered.row, i))
            set_int(ordered.spare_position, place, int_at(ordered.position, i))
        for i in range(start, end):
            set_int(ordered.row, i, int_at(ordered.spare_row, i))
            set_int(ordered.position, i, int_at(ordered.spare_position, i))


class Coalesced(NamedTuple):
    """Addresses of a sparse gradient of N' rows."""

    table_ptr: int  # int64[T + 1]
    rows: int  # int32[N']
    values: int  # f32[N', D]


@kernel
def sum_sorted(arena: Arena, lookups: Lookups, ordered: Sorted, pooled: Pooled, result: Coalesced) -> None:
    """Writes rows and values of the sparse gradient; where its tables begin is known."""
    num_rows = long_at(result.table_ptr, arena.num_tables)
    items = (num_rows + _ROWS_PER_ITEM - 1) // _ROWS_PER_ITEM
    on_all_threads(items, _sum_entries, (arena, lookups, ordered, pooled, result))


@serial
def _sum_entries(arena: Arena, lookups: Lookups, ordered: Sorted, pooled: Pooled, result: Coalesced, item: int) -> None:
    first, table, num_rows = item * _ROWS_PER_ITEM, 0, long_at(result.table_ptr, arena.num_tables)
    for entry in range(first, min(num_rows, first + _ROWS_PER_ITEM)):
        while entry >= long_at(result.table_ptr, table + 1):
            table += 1
        begin = long_at(lookups.table_start, table)
        unique = entry - long_at(result.table_ptr, table)
        start, end = long_at(ordered.start, begin + unique), long_at(lookups.table_start, table + 1)
        last = end
        if unique + 1 < long_at(ordered.num_unique, table):
            end = long_at(ordered.start, begin + unique + 1)
        set_int(result.rows, entry, int_at(ordered.row, start))
        target = result.values + 4 * entry * arena.dim
        for i in range(start + _AHEAD, min(end + _AHEAD, last)):
            # Of the rows to come: their gradients lie pages apart, where the hardware asks for nothing by itself.
            prefetch_pooled(pooled, pooled_element(arena, lookups, table, int_at(ordered.position, i)), arena.dim)
        _sum_lookups(arena, lookups, table, ordered.position, start, end, pooled, target)


@serial
def _sum_lookups(
    arena: Arena, lookups: Lookups, table: int, positions: int, start: int, end: int, pooled: Pooled, target: int
) -> None:
    """Writes to target f32[D] the sum of the gradients of positions start to end."""
    dim = arena.dim
    for k in range(0, dim, LANES):
        summed = splat(np.float32(-0.0))  # the one that changes nothing, not even -0
        for i in range(start, end):
            position = int_at(positions, i)
            at = pooled_element(arena, lookups, table, position) + k
            summed = add(summed, gradient_part(pooled, at, dim - k, divisor(lookups, table, position)))
        store_part(target, k, summed, dim - k)
