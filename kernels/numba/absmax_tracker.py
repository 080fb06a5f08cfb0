"""max|W| of every table: by reading everything, or kept exact at a cost proportional to the rows that a step touches.

The tracker has upper bounds per block of 64 rows and per group of 64 blocks, the exact maximum of the table (`top`) and
a row that holds it (`witness`). An update raises bounds where a new row exceeds them and never lowers any. Only when
the witness shrank and no other row reached the maximum is the largest bound followed down, its block read again and its
bounds lowered, until the largest bound is tight. All values are bit patterns of magnitudes: they order as integers, NaN
on top.

Invariant: no bound of a block exceeds its table's top, so that a new maximum always exceeds its block's bound.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..jit.arena import FP32_ROWS, Arena, arena_of
from ..jit.compile import inlined, kernel, serial
from ..jit.memory import int_at, long_at, prefetch, raise_int, set_int, set_long
from ..jit.simd import LANES, load, load_part
from ..jit.simd_integers import larger, largest, magnitude, no_words
from ..jit.threads import on_all_threads
from ..types import Tables
from .stored_rows import stored_magnitude

_FLOATS_PER_ITEM = 1 << 18
_AHEAD_FLOATS = 1024


@serial
def largest_magnitude(values: int, start: int, end: int) -> int:
    """Returns the bits of the largest |value| of elements start to end; NaN is above all."""
    m0 = m1 = m2 = m3 = no_words()
    i = start
    while i + 4 * LANES <= end:
        prefetch(values, i + _AHEAD_FLOATS)
        prefetch(values, i + _AHEAD_FLOATS + 16)
        prefetch(values, i + _AHEAD_FLOATS + 32)
        prefetch(values, i + _AHEAD_FLOATS + 48)
        m0 = larger(m0, magnitude(load(values, i)))
        m1 = larger(m1, magnitude(load(values, i + LANES)))
        m2 = larger(m2, magnitude(load(values, i + 2 * LANES)))
        m3 = larger(m3, magnitude(load(values, i + 3 * LANES)))
        i += 4 * LANES
    while i < end:
        m0 = larger(m0, magnitude(load_part(values, i, end - i)))
        i += LANES
    return int(largest(larger(larger(m0, m1), larger(m2, m3))))


@kernel
def scan_tables(arena: Arena, bits: int) -> None:
    """Writes bits int32[T], the pattern of max|W| of each table."""
    for table in range(arena.num_tables):
        set_int(bits, table, 0)
    num_rows, at_once = long_at(arena.first_row, arena.num_tables), max(_FLOATS_PER_ITEM // arena.dim, 1)
    on_all_threads((num_rows + at_once - 1) // at_once, _scan_item, (arena, num_rows, at_once, bits))


@serial
def _scan_item(arena: Arena, num_rows: int, at_once: int, bits: int, item: int) -> None:
    """Scans a stretch of the arena, which may lie in several tables."""
    start, end, table = item * at_once, min(num_rows, (item + 1) * at_once), 0
    while start < end:
        table_end = long_at(arena.first_row, table + 1)
        if start < table_end:
            stop = min(end, table_end)
            raise_int(bits, table, _magnitude_of_rows(arena, start, stop))
            start = stop
        table += 1


@inlined
def _magnitude_of_rows(arena: Arena, start: int, end: int) -> Any:
    """Returns the bits of the largest |value| of rows `start` to `end`; NaN is above all."""
    if arena.form == FP32_ROWS:
        return largest_magnitude(arena.weight, start * arena.dim, end * arena.dim)
    return stored_magnitude(arena, start, end)


BLOCK_SHIFT = 6
GROUP_SHIFT = 12
LINE_SHIFT = BLOCK_SHIFT + 4  # rows whose blocks' bounds fill a cache line
_BLOCKS_PER_GROUP = 1 << (GROUP_SHIFT - BLOCK_SHIFT)


class Bounds(NamedTuple):
    """Addresses of the bounds of all tables; all 0: nothing is tracked."""

    block: int  # int32
    block_start: int  # int64[T + 1]
    group: int  # int32
    group_start: int  # int64[T + 1]
    top: int  # int32[T]
    witness: int  # int64[T], rows counted within their table


NO_BOUNDS = Bounds(0, 0, 0, 0, 0, 0)

SIGHTING_LONGS = 8
"""What a piece of an update saw in its table, as int64: the largest magnitude that reaches the old top or -1, its row,
whether the witness fell below the old top, and the rest of a line of the cache."""


@inlined
def _block_magnitude(arena: Arena, bounds: Bounds, table: int, block: int) -> Any:
    """Bits of the largest magnitude in a block, by reading it."""
    first_row = long_at(arena.first_row, table)
    row = first_row + ((block - long_at(bounds.block_start, table)) << BLOCK_SHIFT)
    end = min(row + (1 << BLOCK_SHIFT), long_at(arena.first_row, table + 1))
    return _magnitude_of_rows(arena, row, end)


@inlined
def _first_block(bounds: Bounds, table: int, group: int) -> Any:
    return long_at(bounds.block_start, table) + (group - long_at(bounds.group_start, table)) * _BLOCKS_PER_GROUP


@kernel
def fill_bounds(arena: Arena, bounds: Bounds) -> None:
    """Fills the bounds from a full scan: every one is tight."""
    on_all_threads(long_at(bounds.group_start, arena.num_tables), _fill_group, (arena, bounds))
    for table in range(arena.num_tables):
        if long_at(arena.first_row, table) < long_at(arena.first_row, table + 1):
            descend(arena, bounds, table)


@serial
def _fill_group(arena: Arena, bounds: Bounds, group: int) -> None:
    table = 0
    while long_at(bounds.group_start, table + 1) <= group:
        table += 1
    first = _first_block(bounds, table, group)
    bits = 0
    for block in range(first, min(first + _BLOCKS_PER_GROUP, long_at(bounds.block_start, table + 1))):
        of_block = _block_magnitude(arena, bounds, table, block)
        set_int(bounds.block, block, of_block)
        bits = max(bits, of_block)
    set_int(bounds.group, group, bits)


@serial
def _argmax(words: int, start: int, end: int) -> int:
    """Finds where the first largest of the int32 words start to end lies."""
    top = int_at(words, start)
    for i in range(start, end):
        top = max(top, int_at(words, i))
    place = start
    while int_at(words, place) != top:
        place += 1
    return place


@serial
def descend(arena: Arena, bounds: Bounds, table: int) -> None:
    """Lowers the largest bounds to the truth until one is tight: that is the table's maximum."""
    first_row = long_at(arena.first_row, table)
    while True:
        group = _argmax(bounds.group, long_at(bounds.group_start, table), long_at(bounds.group_start, table + 1))
        first = _first_block(bounds, table, group)
        end = min(first + _BLOCKS_PER_GROUP, long_at(bounds.block_start, table + 1))
        block = _argmax(bounds.block, first, end)
        of_block = int_at(bounds.block, block)
        if of_block < int_at(bounds.group, group):
            set_int(bounds.group, group, of_block)
            continue
        bits = _block_magnitude(arena, bounds, table, block)
        if bits < of_block:
            set_int(bounds.block, block, bits)
            continue
        row = first_row + ((block - long_at(bounds.block_start, table)) << BLOCK_SHIFT)
        while _magnitude_of_rows(arena, row, row + 1) < bits:
            row += 1
        set_int(bounds.top, table, bits)
        set_long(bounds.witness, table, row - first_row)
        return


@inlined
def note_row(bounds: Bounds, table: int, row: int, words: Any, sighting: int) -> None:
    """Raises the bounds above a row that was just written; `words` are the magnitudes of its elements, folded."""
    block = long_at(bounds.block_start, table) + (row >> BLOCK_SHIFT)
    group = long_at(bounds.group_start, table) + (row >> GROUP_SHIFT)
    bits = int(largest(words))
    # Not only where it exceeds the bound: a third of the rows does, too many and too few for a processor to guess.
    set_int(bounds.block, block, max(bits, int_at(bounds.block, block)))
    top, witness = int_at(bounds.top, table), long_at(bounds.witness, table)
    if bits > int_at(bounds.group, group) or bits >= top or row == witness:
        _note_rare(bounds, table, row, group, bits, sighting)


@serial
def _note_rare(bounds: Bounds, table: int, row: int, group: int, bits: int, sighting: int) -> None:
    """Raises the bound of a group; notes a row that reaches the top, and a witness that no longer does."""
    top = int_at(bounds.top, table)
    if bits > int_at(bounds.group, group):
        # Blocks of one group may belong to several threads.
        raise_int(bounds.group, group, bits)
    if bits >= top:
        if bits > long_at(sighting, 0):
            set_long(sighting, 0, bits)
            set_long(sighting, 1, row)
    elif row == long_at(bounds.witness, table):
        set_long(sighting, 2, 1)


@inlined
def clear_sighting(sighting: int) -> None:
    """Notes that nothing was seen."""
    set_long(sighting, 0, -1)
    set_long(sighting, 2, 0)


@serial
def settle_table(arena: Arena, bounds: Bounds, table: int, sightings: int, start: int, end: int) -> None:
    """Brings a table's top and witness up to date from sightings number start to end."""
    best, best_row, shrunk = -1, 0, 0
    for i in range(start, end):
        sighting = sightings + 8 * SIGHTING_LONGS * i
        shrunk |= long_at(sighting, 2)
        if long_at(sighting, 0) > best:
            best, best_row = long_at(sighting, 0), long_at(sighting, 1)
    if best >= 0:
        set_int(bounds.top, table, best)
        set_long(bounds.witness, table, best_row)
    elif shrunk:
        descend(arena, bounds, table)


_LINE_BOUNDS = 1 << (LINE_SHIFT - BLOCK_SHIFT)


class AbsmaxTracker:
    """Implements `interface.Tracker`; about 0.1% of the tables' memory at D = 16."""

    def __init__(self, tables: Tables) -> None:
        num_rows = tables.row_offset.diff()
        block_start, group_start = _starts(num_rows, BLOCK_SHIFT, _LINE_BOUNDS), _starts(num_rows, GROUP_SHIFT, 1)
        self._memory = (
            torch.zeros(int(block_start[-1]), dtype=torch.int32),
            block_start,
            torch.zeros(int(group_start[-1]), dtype=torch.int32),
            group_start,
            torch.zeros(tables.num_tables, dtype=torch.int32),
            torch.zeros(tables.num_tables, dtype=torch.int64),
        )
        self.bounds = Bounds(*(part.data_ptr() for part in self._memory))
        self._absmax = self._memory[4].view(torch.float32)
        self.rebuild(tables)

    def absmax(self) -> Tensor:
        # A copy: a scale that is in use must not move with the next update.
        return self._absmax.clone()

    def rebuild(self, tables: Tables) -> None:
        fill_bounds(arena_of(tables), self.bounds)


def _starts(num_rows: Tensor, shift: int, multiple: int) -> Tensor:
    """Returns int64[T + 1]: where each table's pieces of 2^shift rows begin; pieces between tables have no rows."""
    starts = torch.zeros(num_rows.numel() + 1, dtype=torch.int64)
    num_pieces = (num_rows + (1 << shift) - 1) >> shift
    torch.cumsum((num_pieces + multiple - 1) // multiple * multiple, 0, out=starts[1:])
    return starts
