"""Bags of rows of one packed table, by all threads of torch: an `EmbeddingBag` of codes."""

import numpy as np

from ..jit.compile import inlined, kernel, serial
from ..jit.memory import int_at, long_at, prefetch_byte, raise_int
from ..jit.simd import LANES
from ..jit.simd_integers import larger_unsigned, largest_unsigned, load_words, no_words
from ..jit.simd_nibbles import NIBBLE_BITS
from ..jit.threads import on_all_threads
from .packed_rows import Ids, TablePlaces, lies_in_one_line, prefetch_packed, table_at
from .packed_single_rows import AHEAD, write_bags_of_one
from .packed_sums import pool_packed

_WORTH_THREADS, _ITEM_WORK = 1 << 17, 1 << 15
"""Work that is handed to other threads, in floats written: less takes some 15 us, and others who use the cores make a
thread wait several times as long. That of one item: beginning one takes a tenth of a microsecond."""

_ROW_WORK, _MISSED_ROW_WORK, _CACHED_BYTES = 8, 64, 1 << 22
"""What reading a row takes, in the same unit, in a table of up to so many bytes, and in a larger one."""

_NEAR_BYTES = 1 << 20
"""Of codes that a core's own cache holds: they are read as soon as they are asked for."""


@kernel
def pool_bags(
    table: int,
    ids: int,
    ids_are_long: int,
    num_ids: int,
    offsets: int,
    num_bags: int,
    out: int,
    refused: int,
    masks: int,
) -> None:
    """Writes out f32[B, dim]; ids of either size, offsets int64[B + 1], table int64[TABLE_LONGS]: addresses.

    Raises `refused`, int32[1], for an id of no row, a bag that ends before it begins, a file that contradicts itself.
    """
    about = table_at(table, 0)
    is_cached = about.num_rows * about.row_bytes <= _CACHED_BYTES
    work = num_bags * about.dim + num_ids * (_ROW_WORK if is_cached else _MISSED_ROW_WORK)
    per_item = max(num_bags, 1)
    if work >= _WORTH_THREADS:
        per_item = max(1, num_bags // (work // _ITEM_WORK))
    given = (table, ids, ids_are_long, num_ids, offsets, num_bags, out, refused, masks, per_item)
    on_all_threads((num_bags + per_item - 1) // per_item, _pool_item, given)


@serial
def _pool_item(
    place: int,
    ids: int,
    ids_are_long: int,
    num_ids: int,
    offsets: int,
    num_bags: int,
    out: int,
    refused: int,
    masks: int,
    per_item: int,
    item: int,
) -> None:
    bag, end = item * per_item, min((item + 1) * per_item, num_bags)
    table, numbers = table_at(place, 0), Ids(ids, ids_are_long, 0, 1)
    has_nibbles = table.bits == NIBBLE_BITS
    first = last = long_at(offsets, bag)
    at, signs = bag, first
    while at < end and long_at(offsets, at + 1) == last + 1:
        at, last = at + 1, last + 1
    are_single = at == end
    # Ascending within the ids if no number here is negative: differences of two that are not do not wrap around.
    while at < end:
        at, begin, last = at + 1, last, long_at(offsets, at + 1)
        signs |= last | (last - begin)
    if (signs | last) < 0 or last > num_ids:
        raise_int(refused, 0, 1)
    elif are_single and has_nibbles:
        if write_bags_of_one(table, numbers, first, end - bag, num_ids, out + 4 * bag * table.dim):
            raise_int(refused, 0, 1)
    else:
        # A few bags at a time, and the rows of the next few on their way meanwhile.
        is_near = table.num_rows * table.row_bytes <= _NEAR_BYTES
        together = end - bag if is_near else max(1, AHEAD * (end - bag) // max(1, last - first))
        asked = first
        while bag < end:
            stop = min(bag + together, end)
            until = min(long_at(offsets, stop) + AHEAD, num_ids)
            bad = _check(table, numbers, asked, until) if is_near else _ask_for_rows(table, numbers, asked, until)
            asked = until
            if bad or pool_packed(table, numbers, offsets, bag, stop, out + 4 * bag * table.dim, masks):
                raise_int(refused, 0, 1)
                return
            bag = stop


@serial
def _check(table: TablePlaces, ids: Ids, first: int, end: int) -> int:
    """Returns 1 if one of the ids is no row of the table."""
    bad = 0
    if ids.is_long:
        for at in range(first, end):
            bad |= int(np.uint64(long_at(ids.place, at)) >= np.uint64(table.num_rows))
        return bad
    most = no_words()
    for at in range(first, end, LANES):
        most = larger_unsigned(most, load_words(ids.place, at, end - at))
    return int(first < end and largest_unsigned(most) >= table.num_rows)


@serial
def _ask_for_rows(table: TablePlaces, ids: Ids, first: int, end: int) -> int:
    """Asks for rows; returns 1 if one of them is none of the table's."""
    # A copy of the loop for each case: it is too short for decisions.
    if lies_in_one_line(table):
        return int(_ask(table, ids, 1, 1, first, end) if ids.is_long else _ask(table, ids, 0, 1, first, end))
    return int(_ask(table, ids, 1, 0, first, end) if ids.is_long else _ask(table, ids, 0, 0, first, end))


@inlined
def _ask(table: TablePlaces, ids: Ids, is_long: int, is_simple: int, first: int, end: int) -> int:
    bad = 0
    for at in range(first, end):
        number = long_at(ids.place, at) if is_long else int_at(ids.place, at)
        bad |= int(np.uint64(number) >= np.uint64(table.num_rows))
        if is_simple:
            prefetch_byte(table.codes, number * table.row_bytes)
        else:
            prefetch_packed(table, number)
    return bad
