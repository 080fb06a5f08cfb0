"""Keeps max|W| of every table exact at a cost proportional to the rows that a step touches.

Upper bounds per block of 64 rows and per group of 64 blocks, the exact maximum of the table (`top`) and a row that
holds it (`witness`). An update raises bounds where a new row exceeds them and never lowers any. Only when the witness
shrank and no other row reached the maximum is the largest bound followed down, its block read again and its bounds
lowered, until the largest bound is tight. All values are bit patterns of magnitudes: they order as integers, NaN
on top.

Invariant: no bound of a block exceeds its table's top, so that a new maximum always exceeds its block's bound.
"""

from typing import NamedTuple

import numpy as np
from numba import prange
from numpy.typing import NDArray

from .atomic import raise_to
from .compiled import parallel, serial
from .scan import largest_magnitude
from .vector import any_above, largest

BLOCK_SHIFT = 6
_GROUP_SHIFT = 12


class Bounds(NamedTuple):
    """Of all tables; with empty arrays: nothing is tracked."""

    block: NDArray[np.int32]
    block_start: NDArray[np.int64]  # [T + 1]
    group: NDArray[np.int32]
    group_start: NDArray[np.int64]  # [T + 1]
    top: NDArray[np.int32]  # [T]
    witness: NDArray[np.int64]  # [T], rows counted within their table


class Sighting(NamedTuple):
    """What one piece of an update saw in its table."""

    best: np.int32  # largest magnitude that reaches the old top, or -1
    best_row: np.int64
    shrunk: bool  # the witness fell below the old top


class Sightings(NamedTuple):
    """One per piece of work; pieces of a table lie together."""

    best: NDArray[np.int32]
    best_row: NDArray[np.int64]
    shrunk: NDArray[np.bool_]


def allocate_bounds(first_row: NDArray[np.int64]) -> Bounds:
    """Bounds of the right size, not filled."""
    rows = np.diff(first_row)
    num_blocks = (rows + (1 << BLOCK_SHIFT) - 1) >> BLOCK_SHIFT
    num_groups = (rows + (1 << _GROUP_SHIFT) - 1) >> _GROUP_SHIFT
    block_start = np.concatenate(([0], np.cumsum(num_blocks)))
    group_start = np.concatenate(([0], np.cumsum(num_groups)))
    return Bounds(
        np.zeros(block_start[-1], np.int32),
        block_start,
        np.zeros(group_start[-1], np.int32),
        group_start,
        np.zeros(rows.size, np.int32),
        np.zeros(rows.size, np.int64),
    )


def no_bounds() -> Bounds:
    """For an update that tracks nothing."""
    words, starts = np.empty(0, np.int32), np.empty(0, np.int64)
    return Bounds(words, starts, words, starts, words, starts)


@parallel
def fill_bounds(weight: NDArray[np.float32], first_row: NDArray[np.int64], bounds: Bounds) -> None:
    """From a full scan: every bound is tight."""
    for group in prange(bounds.group.size):
        _fill_group(weight, first_row, bounds, group)
    for table in range(first_row.size - 1):
        if first_row[table] < first_row[table + 1]:
            descend(weight, first_row, bounds, table)


@serial
def _fill_group(weight: NDArray[np.float32], first_row: NDArray[np.int64], bounds: Bounds, group: int) -> None:
    table = np.searchsorted(bounds.group_start, group, side="right") - 1
    first = bounds.block_start[table] + ((group - bounds.group_start[table]) << 6)
    dim, bits = weight.shape[1], np.int32(0)
    for block in range(first, min(first + 64, bounds.block_start[table + 1])):
        row = first_row[table] + ((block - bounds.block_start[table]) << BLOCK_SHIFT)
        row_end = min(row + (1 << BLOCK_SHIFT), first_row[table + 1])
        bounds.block[block] = largest_magnitude(weight, row * dim, row_end * dim)
        bits = max(bits, bounds.block[block])
    bounds.group[group] = bits


@serial
def _argmax(words: NDArray[np.int32], start: int, end: int) -> int:
    """Where the first largest word lies."""
    top = words[start]
    for i in range(start, end):
        top = max(top, words[i])
    for i in range(start, end):
        if words[i] == top:
            return i
    return start


@serial
def descend(weight: NDArray[np.float32], first_row: NDArray[np.int64], bounds: Bounds, table: int) -> None:
    """Lowers the largest bounds to the truth until one is tight: that is the table's maximum."""
    dim = weight.shape[1]
    while True:
        group = _argmax(bounds.group, bounds.group_start[table], bounds.group_start[table + 1])
        first = bounds.block_start[table] + ((group - bounds.group_start[table]) << 6)
        block = _argmax(bounds.block, first, min(first + 64, bounds.block_start[table + 1]))
        if bounds.block[block] < bounds.group[group]:
            bounds.group[group] = bounds.block[block]
            continue
        row = first_row[table] + ((block - bounds.block_start[table]) << BLOCK_SHIFT)
        row_end = min(row + (1 << BLOCK_SHIFT), first_row[table + 1])
        bits = largest_magnitude(weight, row * dim, row_end * dim)
        if bits < bounds.block[block]:
            bounds.block[block] = bits
            continue
        while largest_magnitude(weight, row * dim, (row + 1) * dim) < bits:
            row += 1
        bounds.top[table] = bits
        bounds.witness[table] = row - first_row[table]
        return


@serial
def note_row(bounds: Bounds, table: int, row: int, words: object, sighting: Sighting) -> Sighting:
    """Raises the bounds above a row that was just written; `words` are the magnitudes of its elements, folded."""
    block = bounds.block_start[table] + (row >> BLOCK_SHIFT)
    is_witness = row == bounds.witness[table]
    if not (is_witness or any_above(words, bounds.block[block])):
        return sighting
    bits, top = largest(words), bounds.top[table]
    if bits > bounds.block[block]:
        bounds.block[block] = bits
        group = bounds.group_start[table] + (row >> _GROUP_SHIFT)
        if bits > bounds.group[group]:
            # Blocks of one group may belong to several threads.
            raise_to(bounds.group, group, bits)
    shrunk = sighting.shrunk or (is_witness and bits < top)
    if bits >= top and bits > sighting.best:
        return Sighting(bits, row, shrunk)
    return Sighting(sighting.best, sighting.best_row, shrunk)


@serial
def settle_table(
    weight: NDArray[np.float32],
    first_row: NDArray[np.int64],
    bounds: Bounds,
    table: int,
    sightings: Sightings,
    start: int,
    end: int,
) -> None:
    """Brings a table's top and witness up to date from sightings start to end."""
    best, best_row, shrunk = np.int32(-1), np.int64(0), False
    for i in range(start, end):
        shrunk = shrunk or sightings.shrunk[i]
        if sightings.best[i] > best:
            best, best_row = sightings.best[i], sightings.best_row[i]
    if best >= 0:
        bounds.top[table] = best
        bounds.witness[table] = best_row
    elif shrunk:
        descend(weight, first_row, bounds, table)
