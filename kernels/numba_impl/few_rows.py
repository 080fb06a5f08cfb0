"""Sums the gradients of a table of few rows: each row has its sum in the cache, so that no equal rows need be found.

About half of the tables of a click model are of this kind, and most of their lookups name a row that others name too.
The sums are those of the chains to the bit: in the order of the samples.
"""

import numpy as np

from .arena import Arena
from .compiled import inlined, serial
from .gradients import divisor, gradient_part
from .lookups import Lookups, Pooled, pooled_element, prefetch_pooled
from .memory import int_at, long_at, set_int
from .vector import LANES, add, load, splat, store

SUMS = 1 << 17
"""Floats of the sums: they are to stay in a core's own cache."""

_AHEAD = 16


@inlined
def row_stride(dim: int) -> int:
    """Floats from one sum to the next."""
    return (dim + LANES - 1) // LANES * LANES


@inlined
def has_few_rows(arena: Arena, lookups: Lookups, table: int) -> bool:
    """Whether the sums of all rows fit, and clearing them pays. The table is then one piece of work, without shards."""
    num_rows = long_at(arena.first_row, table + 1) - long_at(arena.first_row, table)
    num_lookups = long_at(lookups.table_start, table + 1) - long_at(lookups.table_start, table)
    return bool(num_rows <= num_lookups and num_rows * row_stride(arena.dim) <= SUMS)


@serial
def sum_few(arena: Arena, table: int, lookups: Lookups, pooled: Pooled, seen: int, sums: int) -> None:
    """Writes the sum of each row's gradients, and to `seen`, int32 by row, whether there are any."""
    num_rows = long_at(arena.first_row, table + 1) - long_at(arena.first_row, table)
    dim, stride = arena.dim, row_stride(arena.dim)
    for row in range(num_rows):
        set_int(seen, row, 0)
    nothing = splat(np.float32(-0.0))  # the one that changes nothing, not even -0
    for k in range(0, num_rows * stride, LANES):
        store(sums, k, nothing)
    start, end = long_at(lookups.table_start, table), long_at(lookups.table_start, table + 1)
    for position in range(start, end):
        if position + _AHEAD < end:
            prefetch_pooled(pooled, pooled_element(arena, lookups, table, position + _AHEAD), dim)
        row = int_at(lookups.ids, position)
        set_int(seen, row, 1)
        at, length = pooled_element(arena, lookups, table, position), divisor(lookups, table, position)
        for k in range(0, dim, LANES):
            place = row * stride + k
            store(sums, place, add(load(sums, place), gradient_part(pooled, at + k, dim - k, length)))
