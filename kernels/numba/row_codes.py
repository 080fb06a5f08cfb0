"""Rows of tables as they travel between ranks: found in a batch, turned into codes, and back into values.

Codes are those of the fused lookup, so that a row which travelled is pooled to the same bits as one that did not. What
a code cannot say is the sign of a zero, which no sum and no updated weight shows.
"""

from typing import NamedTuple

import numpy as np

from ..jit.arena import Arena, prefetch_stored
from ..jit.compile import kernel, serial
from ..jit.memory import float_at, int_at, long_at, set_int
from ..jit.simd import LANES, load_part, multiply, splat, store_part
from ..jit.simd_integers import load_codes, store_codes, to_floats
from ..jit.threads import on_all_threads
from .coalesce import Sorted
from .codes import codes_of
from .lookups import Lookups
from .stored_rows import load_stored

_ROWS_PER_ITEM = 256
_AHEAD = 8


class ListedRows(NamedTuple):
    """Addresses of the rows that a batch looks up, and of their places."""

    table_ptr: int  # int64[T + 1], into rows
    rows: int  # int32[N'], of each table ascending
    place: int  # int32[N]: where the row of each id stands among those of its table


@kernel
def list_rows(num_tables: int, lookups: Lookups, ordered: Sorted, result: ListedRows) -> None:
    """Writes rows and places of sorted lookups; where its tables begin is known."""
    on_all_threads(num_tables, _list_table, (lookups, ordered, result))


@serial
def _list_table(lookups: Lookups, ordered: Sorted, result: ListedRows, table: int) -> None:
    begin, end = long_at(lookups.table_start, table), long_at(lookups.table_start, table + 1)
    first = long_at(result.table_ptr, table)
    unique = -1
    for i in range(begin, end):
        row = int_at(ordered.row, i)
        if i == begin or row != int_at(ordered.row, i - 1):
            unique += 1
            set_int(result.rows, first + unique, row)
        set_int(result.place, int_at(ordered.position, i), unique)


class RowCodes(NamedTuple):
    """Addresses of rows of all tables on their way between ranks, and of the scales of their codes."""

    pointer: int  # int64[T + 1], into what follows
    scales: int  # f32[T]
    codes: int  # [N, D] of code_bytes each
    code_bytes: int  # 1 or 2; 4: the values themselves


@kernel
def encode_rows(arena: Arena, rows: int, limit: np.float32, result: RowCodes) -> None:
    """Writes the codes, between -limit - 1 and limit, of rows int32[N], which count within their tables."""
    num_rows = long_at(result.pointer, arena.num_tables)
    on_all_threads((num_rows + _ROWS_PER_ITEM - 1) // _ROWS_PER_ITEM, _encode_item, (arena, rows, limit, result))


@serial
def _encode_item(arena: Arena, rows: int, limit: np.float32, result: RowCodes, item: int) -> None:
    start, stop = item * _ROWS_PER_ITEM, (item + 1) * _ROWS_PER_ITEM
    for table in range(arena.num_tables):
        first, last = max(start, long_at(result.pointer, table)), min(stop, long_at(result.pointer, table + 1))
        if first < last:
            _encode_table(arena, rows, long_at(arena.first_row, table), first, last, limit, result, table)


@serial
def _encode_table(
    arena: Arena, rows: int, first_row: int, first: int, last: int, limit: np.float32, result: RowCodes, table: int
) -> None:
    dim, inverse = arena.dim, np.float32(1) / float_at(result.scales, table)
    for entry in range(first, min(last, first + _AHEAD)):
        prefetch_stored(arena, first_row + int_at(rows, entry))
    for entry in range(first, last):
        if entry + _AHEAD < last:
            prefetch_stored(arena, first_row + int_at(rows, entry + _AHEAD))
        row, target = first_row + int_at(rows, entry), entry * dim
        for k in range(0, dim, LANES):
            values = load_stored(arena, row, k, dim - k)
            if result.code_bytes == 4:
                store_part(result.codes, target + k, values, dim - k)
            else:
                store_codes(result.codes, target + k, codes_of(values, inverse, limit), dim - k, result.code_bytes)


@kernel
def decode_rows(sent: RowCodes, num_tables: int, dim: int, places: int, out: int) -> None:
    """Writes the values of row n of `sent` to row places[n], int64[N], of out f32[M, D]."""
    num_rows = long_at(sent.pointer, num_tables)
    items = (num_rows + _ROWS_PER_ITEM - 1) // _ROWS_PER_ITEM
    on_all_threads(items, _decode_item, (sent, num_tables, dim, places, out))


@serial
def _decode_item(sent: RowCodes, num_tables: int, dim: int, places: int, out: int, item: int) -> None:
    start, stop = item * _ROWS_PER_ITEM, (item + 1) * _ROWS_PER_ITEM
    for table in range(num_tables):
        first, last = max(start, long_at(sent.pointer, table)), min(stop, long_at(sent.pointer, table + 1))
        scale = splat(float_at(sent.scales, table))
        for entry in range(first, last):
            source, target = entry * dim, long_at(places, entry) * dim
            for k in range(0, dim, LANES):
                if sent.code_bytes == 4:
                    store_part(out, target + k, load_part(sent.codes, source + k, dim - k), dim - k)
                else:
                    codes = to_floats(load_codes(sent.codes, source + k, dim - k, sent.code_bytes))
                    store_part(out, target + k, multiply(codes, scale), dim - k)
