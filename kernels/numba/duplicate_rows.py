"""Equal rows among the lookups of a table: chained in the order of the samples, or, in a table of few rows, summed.

Every lookup writes its number into a slot of a hash table, and the first one there wins: those of its row belong to it,
and those of another row try again with another hash. No slot is cleared beforehand, since none is read that was not
written, and nothing here depends on a comparison that a processor would have to guess: half of them are new rows.

In a table of few rows each row has its sum in the cache, so that no equal rows need be found. About half of the tables
of a click model are of this kind, and most of their lookups name a row that others name too. Those sums are the sums
along the chains to the bit: in the order of the samples.
"""

from typing import NamedTuple

import numpy as np

from ..jit.arena import Arena
from ..jit.compile import inlined, serial
from ..jit.memory import int_at, long_at, prefetch_byte, set_int
from ..jit.simd import LANES, add, load, splat, store
from ..jit.simd_integers import hashed_equal, how_many, load_words, numbers_from, pack
from .absmax_tracker import LINE_SHIFT
from .lookups import Lookups, Pooled, divisor, gradient_part, pooled_element, prefetch_pooled

SLOTS_PER_LOOKUP = 4
CHAIN_LISTS = 6

DENSE_SUMS = 1 << 17
"""Floats of the sums: they are to stay in a core's own cache."""

_SHARD_FACTOR = 0x85EBCA6B
_AHEAD = 16


class Chains(NamedTuple):
    """Addresses of one thread's scratch memory, all int32, for up to L - LANES lookups."""

    position: int  # [L], which ids belong to the shard
    row: int  # [L], of each of them
    following: int  # [L], the next lookup of the same row, or -1
    open: int  # [L], the lookups whose row has no chain yet, the last first
    single: int  # [L], the lookups whose row nobody else looks up
    first: int  # [L], the first lookup of each other row
    slot: int  # [at least SLOTS_PER_LOOKUP L, a power of two]


@inlined
def chains_at(base: int, length: int) -> Chains:
    """Lays out the chains in memory for CHAIN_LISTS lists of `length` and the slots."""
    step = 4 * length
    return Chains(
        base, base + step, base + 2 * step, base + 3 * step, base + 4 * step, base + 5 * step, base + 6 * step
    )


@inlined
def _place(row: int, factor: np.uint32, shift: np.uint32) -> np.int64:
    """Returns a slot for a row."""
    return np.int64(np.uint32(np.uint32(row) * factor) >> shift)


@serial
def _select(ids: int, start: int, end: int, shard: int, shard_bits: int, chains: Chains) -> int:
    """Writes which of the ids start to end fall into the shard, and their rows; returns how many.

    Rows whose bounds share a cache line share a shard, so that no two threads write to the same line of them.
    """
    count, factor, keep_from = 0, _SHARD_FACTOR, 32 - shard_bits
    if shard_bits == 0:
        factor = keep_from = 0
    for i in range(start, end, LANES):
        rows = load_words(ids, i, end - i)
        chosen = hashed_equal(rows, LINE_SHIFT, factor, keep_from, shard, end - i)
        pack(chains.position, count, numbers_from(i), chosen)
        pack(chains.row, count, rows, chosen)
        count += how_many(chosen)
    return count


@serial
def chain_shard(
    arena: Arena, lookups: Lookups, table: int, pooled: Pooled, shard: int, shard_bits: int, chains: Chains
) -> tuple[int, int]:
    """Chains the lookups of a table that fall into the shard; returns the numbers of single and of first lookups.

    Asks for their gradients and rows meanwhile, which are not in the cache.
    """
    start, end = long_at(lookups.table_start, table), long_at(lookups.table_start, table + 1)
    first_row = long_at(arena.first_row, table)
    num_rows = long_at(arena.first_row, table + 1) - first_row
    count = _select(lookups.ids, start, end, shard, shard_bits, chains)
    for i in range(count):
        position = int_at(chains.position, i)
        prefetch_pooled(pooled, pooled_element(arena, lookups, table, position), arena.dim)
        set_int(chains.open, i, count - 1 - i)
        set_int(chains.following, i, -1)
    slot_bits = 1
    while (1 << slot_bits) < SLOTS_PER_LOOKUP * count:
        slot_bits += 1
    # A table with fewer rows than slots needs no hash.
    factor, shift = np.uint32(1), np.uint32(0)
    if num_rows > 1 << slot_bits:
        factor, shift = np.uint32(0x9E3779B1), np.uint32(32 - slot_bits)
    num_single, num_first = 0, 0
    while count > 0:
        for k in range(count):
            i = int_at(chains.open, k)
            row = int_at(chains.row, i)
            prefetch_byte(arena.weight, (first_row + row) * arena.row_bytes)
            set_int(chains.slot, _place(row, factor, shift), i)
        count, num_single, num_first = _chain_round(chains, count, factor, shift, num_single, num_first)
        factor = np.uint32(factor * np.uint32(0x2C1B3C6D))
    return num_single, num_first


@serial
def _chain_round(
    chains: Chains, count: int, factor: np.uint32, shift: np.uint32, num_single: int, num_first: int
) -> tuple[int, int, int]:
    """Puts each open lookup into the chain of the winner of its slot, if they have one row.

    Backwards, so that whoever is put right behind the first lookup comes before those that are there.
    """
    num_open = 0
    for k in range(count):
        i = int_at(chains.open, k)
        row = int_at(chains.row, i)
        winner = int_at(chains.slot, _place(row, factor, shift))
        behind = int_at(chains.following, winner)
        is_first, is_same = winner == i, int_at(chains.row, winner) == row
        set_int(chains.following, i, behind if is_same else -1)
        set_int(chains.following, winner, i if is_same and not is_first else behind)
        set_int(chains.open, num_open, i)
        num_open += 0 if is_same else 1
        set_int(chains.single, num_single, i)
        num_single += 1 if is_first and behind < 0 else 0
        set_int(chains.first, num_first, i)
        num_first += 1 if is_first and behind >= 0 else 0
    return num_open, num_single, num_first


@inlined
def row_stride(dim: int) -> int:
    """Returns the floats from one sum to the next."""
    return (dim + LANES - 1) // LANES * LANES


@inlined
def sums_fit(arena: Arena, lookups: Lookups, table: int) -> bool:
    """Returns whether the sums of all rows fit, and clearing them pays. The table is then one item, without shards."""
    num_rows = long_at(arena.first_row, table + 1) - long_at(arena.first_row, table)
    num_lookups = long_at(lookups.table_start, table + 1) - long_at(lookups.table_start, table)
    return bool(num_rows <= num_lookups and num_rows * row_stride(arena.dim) <= DENSE_SUMS)


@serial
def sum_dense(arena: Arena, table: int, lookups: Lookups, pooled: Pooled, seen: int, sums: int) -> None:
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
