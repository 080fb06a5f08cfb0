"""Finds equal rows among the lookups of a table: a hash table whose entries are chains in the order of the samples."""

from typing import NamedTuple

import numpy as np

from .arena import Arena
from .bounds import BLOCK_SHIFT
from .compiled import inlined, serial
from .lookups import Lookups, Pooled, pooled_element, prefetch_pooled
from .memory import int_at, long_at, set_int


class Chains(NamedTuple):
    """Addresses of one thread's scratch memory, all int32, for up to L lookups."""

    position: int  # [L], which ids belong to the shard
    following: int  # [L], the next lookup of the same row, or -1
    head: int  # [L], per unique row: its first lookup
    row: int  # [L], per unique row
    slot: int  # [at least 2 L, a power of two]


@inlined
def _shard_of(row: int, shard_bits: int) -> np.int64:
    """Rows of one block of bounds share a shard, so that no two threads write the same bound."""
    return np.int64(np.uint32(np.uint32(row >> BLOCK_SHIFT) * np.uint32(0x85EBCA6B)) >> np.uint32(32 - shard_bits))


@inlined
def _spread(row: int, shift: np.uint32) -> np.int64:
    """A slot for a row of a large table."""
    return np.int64(np.uint32(np.uint32(row) * np.uint32(0x9E3779B1)) >> shift)


@inlined
def _select(ids: int, start: int, end: int, shard: int, shard_bits: int, position: int) -> int:
    """Writes which of the ids start to end fall into the shard; returns how many."""
    if shard_bits == 0:
        for i in range(start, end):
            set_int(position, i - start, i)
        return end - start
    count = 0
    for i in range(start, end):
        set_int(position, count, i)
        count += 1 if _shard_of(int_at(ids, i), shard_bits) == shard else 0
    return count


@serial
def chain_shard(
    arena: Arena, lookups: Lookups, table: int, pooled: Pooled, shard: int, shard_bits: int, chains: Chains
) -> int:
    """Chains the lookups of a table that fall into the shard; returns the number of unique rows.

    Asks for their gradients meanwhile, which are not in the cache.
    """
    ids, start, end = lookups.ids, long_at(lookups.table_start, table), long_at(lookups.table_start, table + 1)
    num_rows = long_at(arena.first_row, table + 1) - long_at(arena.first_row, table)
    count = _select(ids, start, end, shard, shard_bits, chains.position)
    slot_bits = 1
    while (1 << slot_bits) < 2 * count:
        slot_bits += 1
    mask = (1 << slot_bits) - 1
    for i in range(mask + 1):
        set_int(chains.slot, i, -1)
    direct = num_rows <= mask + 1
    shift, num_unique = np.uint32(32 - slot_bits), 0
    # Backwards: putting each lookup at the head of its chain leaves the chain in the order of the samples.
    for i in range(count - 1, -1, -1):
        position = int_at(chains.position, i)
        prefetch_pooled(pooled, pooled_element(arena, lookups, table, position), arena.dim)
        row = int_at(ids, position)
        # A table with fewer rows than slots needs no hash.
        place = np.int64(row) if direct else _spread(row, shift)
        unique = int_at(chains.slot, place)
        while unique >= 0 and int_at(chains.row, unique) != row:
            place = (place + 1) & mask
            unique = int_at(chains.slot, place)
        if unique < 0:
            unique = num_unique
            num_unique += 1
            set_int(chains.slot, place, unique)
            set_int(chains.row, unique, row)
            set_int(chains.following, i, -1)
        else:
            set_int(chains.following, i, int_at(chains.head, unique))
        set_int(chains.head, unique, i)
    return num_unique
