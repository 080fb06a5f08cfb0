"""Rows of tables of 4 bits that are not summed: each code is looked up in a register of the 16 numbers it may be."""

from typing import Any

import numpy as np

from ..jit.compile import inlined, serial
from ..jit.memory import float_at, int_at, long_at, prefetch_byte
from ..jit.simd import LANES, multiply, splat, store, store_part
from ..jit.simd_nibbles import code_values, values_at, values_at_end
from .packed_rows import Ids, TablePlaces, lies_in_one_line, prefetch_packed

AHEAD = 32
"""Ids from the one whose row is read to the one whose row is asked for; a hundred later rows push it out again."""


@serial
def write_bags_of_one(table: TablePlaces, ids: Ids, first: int, count: int, num_ids: int, target: int) -> int:
    """Writes f32[count, dim] of the rows that ids name from number `first` of `num_ids` on; checks them as it reads.

    :returns: 1 if one of them is no row of the table.
    """
    # A copy of the loop for each case: it is too short for decisions.
    if not lies_in_one_line(table):
        if ids.is_long:
            return int(_write_checked(table, ids, 1, 0, 0, first, count, num_ids, target))
        return int(_write_checked(table, ids, 0, 0, 0, first, count, num_ids, target))
    if table.dim == LANES:
        if ids.is_long:
            return int(_write_checked(table, ids, 1, 1, 1, first, count, num_ids, target))
        return int(_write_checked(table, ids, 0, 1, 1, first, count, num_ids, target))
    if ids.is_long:
        return int(_write_checked(table, ids, 1, 1, 0, first, count, num_ids, target))
    return int(_write_checked(table, ids, 0, 1, 0, first, count, num_ids, target))


@inlined
def _write_checked(
    table: TablePlaces,
    ids: Ids,
    is_long: int,
    is_simple: int,
    is_short_row: int,
    first: int,
    count: int,
    num_ids: int,
    target: int,
) -> int:
    values, place = _values(table), ids.place + first * (8 if is_long else 4)
    until = max(0, min(count, num_ids - first - AHEAD))
    bad: int = _write_stretch(table, values, is_long, is_simple, is_short_row, 1, place, 0, until, target)
    bad |= _write_stretch(table, values, is_long, is_simple, is_short_row, 0, place, until, count, target)
    return bad


@inlined
def _write_stretch(
    table: TablePlaces,
    values: Any,
    is_long: int,
    is_simple: int,
    is_short_row: int,
    asks: int,
    ids: int,
    first: int,
    end: int,
    target: int,
) -> int:
    """Writes the rows of some ids, and asks for those that come AHEAD of them."""
    target += 4 * first * table.dim
    for at in range(first, end):
        number = long_at(ids, at) if is_long else int_at(ids, at)
        if asks:
            coming = long_at(ids, at + AHEAD) if is_long else int_at(ids, at + AHEAD)
            if is_simple:
                prefetch_byte(table.codes, coming * table.row_bytes)
            else:
                prefetch_packed(table, coming)
        if np.uint64(number) >= np.uint64(table.num_rows):
            return 1
        _write_row(table, values, is_short_row, number, target)
        target += 4 * table.dim
    return 0


@inlined
def write_slot(
    table: TablePlaces, ids: Ids, is_long: int, is_short_row: int, start: int, stop: int, target: int, stride: int
) -> None:
    """Writes f32[dim] for the id in a table's first slot of each row of ids, `stride` floats apart; zeros for no id."""
    size, values = 8 if is_long else 4, _values(table)
    nothing = multiply(splat(float_at(table.scale, 0)), splat(np.float32(0)))
    place = ids.place + size * (start * ids.row_stride + table.first_slot * ids.slot_stride)
    for _ in range(start, stop):
        number = long_at(place, 0) if is_long else int_at(place, 0)
        place += size * ids.row_stride
        if number >= 0:
            _write_row(table, values, is_short_row, number, target)
        else:
            for k in range(0, table.dim, LANES):
                store_part(target, k, nothing, table.dim - k)
        target += 4 * stride


@inlined
def _values(table: TablePlaces) -> Any:
    return code_values(float_at(table.scale, 0), float_at(table.offset, 0) if table.offset else np.float32(0))


@inlined
def _write_row(table: TablePlaces, values: Any, is_short_row: int, number: int, target: int) -> None:
    at = table.codes + number * table.row_bytes
    if is_short_row:
        store(target, 0, values_at(values, at))
        return
    whole = table.dim // LANES * LANES
    for k in range(0, whole, LANES):
        store(target, k, values_at(values, at + k // 2))
    if whole < table.dim:
        last = values_at_end(values, at + whole // 2, table.row_bytes - whole // 2)
        store_part(target, whole, last, table.dim - whole)
