"""Updates the tables with a gradient whose rows are unique and sorted within their table."""

from typing import NamedTuple

from .arena import Arena, prefetch_row
from .bounds import BLOCK_SHIFT, SIGHTING_LONGS, Bounds, clear_sighting, note_row, settle_table
from .compiled import inlined, kernel, serial
from .memory import int_at, long_at
from .rule import Rule, step_row
from .threads import on_all_threads

ENTRIES_PER_ITEM = 512
_AHEAD = 16


class Entries(NamedTuple):
    """Addresses of a sparse gradient, and how it is cut into items."""

    table_ptr: int  # int64[T + 1]
    rows: int  # int32[N]
    values: int  # f32[N, D]
    first_item: int  # int64[T + 1]
    sightings: int  # int64[items, SIGHTING_LONGS]


@kernel
def apply_sparse(arena: Arena, entries: Entries, rule: Rule, bounds: Bounds) -> None:
    """One item: ENTRIES_PER_ITEM rows of one table."""
    on_all_threads(long_at(entries.first_item, arena.num_tables), _apply_item, (arena, entries, rule, bounds))
    if bounds.top:
        for table in range(arena.num_tables):
            first, last = long_at(entries.first_item, table), long_at(entries.first_item, table + 1)
            settle_table(arena, bounds, table, entries.sightings, first, last)


@serial
def _apply_item(arena: Arena, entries: Entries, rule: Rule, bounds: Bounds, item: int) -> None:
    table, dim = 0, arena.dim
    while long_at(entries.first_item, table + 1) <= item:
        table += 1
    first, last = long_at(entries.table_ptr, table), long_at(entries.table_ptr, table + 1)
    start = first + (item - long_at(entries.first_item, table)) * ENTRIES_PER_ITEM
    end = _next_block(entries.rows, start + ENTRIES_PER_ITEM, first, last)
    start = _next_block(entries.rows, start, first, last)
    sighting = entries.sightings + 8 * SIGHTING_LONGS * item
    clear_sighting(sighting)
    first_row = long_at(arena.first_row, table)
    for i in range(start, end):
        if i + _AHEAD < end:
            prefetch_row(arena.weight, first_row + int_at(entries.rows, i + _AHEAD), dim)
        row = int_at(entries.rows, i)
        words = step_row(rule, arena.weight, first_row + row, dim, entries.values + 4 * i * dim)
        if bounds.top:
            note_row(bounds, table, row, words, sighting)


@inlined
def _next_block(rows: int, entry: int, first: int, last: int) -> int:
    """The first entry from `entry` on that starts a block of bounds: no block is cut, so no two threads share one."""
    if entry >= last:
        return last
    while (
        entry > first and entry < last and int_at(rows, entry) >> BLOCK_SHIFT == int_at(rows, entry - 1) >> BLOCK_SHIFT
    ):
        entry += 1
    return entry
