"""max|W| by reading everything."""

from .arena import Arena
from .compiled import kernel, serial
from .memory import long_at, raise_int, set_int
from .threads import on_all_threads
from .vector import LANES, load, load_part, prefetch
from .words import larger, largest, magnitude, no_words

_FLOATS_PER_ITEM = 1 << 18
_AHEAD_FLOATS = 1024


@serial
def largest_magnitude(values: int, start: int, end: int) -> int:
    """Bits of the largest |value| of elements start to end; NaN is above all."""
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
    """bits int32[T]: the pattern of max|W| of each table."""
    for table in range(arena.num_tables):
        set_int(bits, table, 0)
    num_floats = long_at(arena.first_row, arena.num_tables) * arena.dim
    on_all_threads((num_floats + _FLOATS_PER_ITEM - 1) // _FLOATS_PER_ITEM, _scan_item, (arena, num_floats, bits))


@serial
def _scan_item(arena: Arena, num_floats: int, bits: int, item: int) -> None:
    """A stretch of the arena, which may lie in several tables."""
    start, end, table = item * _FLOATS_PER_ITEM, min(num_floats, (item + 1) * _FLOATS_PER_ITEM), 0
    while start < end:
        table_end = long_at(arena.first_row, table + 1) * arena.dim
        if start < table_end:
            stop = min(end, table_end)
            raise_int(bits, table, largest_magnitude(arena.weight, start, stop))
            start = stop
        table += 1
