"""Finds equal rows among the lookups of a table, and chains them in the order of the samples.

Every lookup writes its number into a slot of a hash table, and the first one there wins: those of its row belong to it,
and those of another row try again with another hash. No slot is cleared beforehand, since none is read that was not
written, and nothing here depends on a comparison that a processor would have to guess: half of them are new rows.
"""

from typing import NamedTuple

import numpy as np

from .arena import Arena
from .bounds import LINE_SHIFT
from .compiled import inlined, serial
from .lanes import hashed_equal, how_many, load_words, numbers_from, pack
from .lookups import Lookups, Pooled, pooled_element, prefetch_pooled
from .memory import int_at, long_at, set_int
from .vector import LANES, prefetch

SLOTS_PER_LOOKUP = 4
CHAIN_LISTS = 6

_SHARD_FACTOR = 0x85EBCA6B


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
    """In memory for CHAIN_LISTS lists of `length` and the slots."""
    step = 4 * length
    return Chains(
        base, base + step, base + 2 * step, base + 3 * step, base + 4 * step, base + 5 * step, base + 6 * step
    )


@inlined
def _place(row: int, factor: np.uint32, shift: np.uint32) -> np.int64:
    """A slot for a row."""
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
            prefetch(arena.weight, (first_row + row) * arena.dim)
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
