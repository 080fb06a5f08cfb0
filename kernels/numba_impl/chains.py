"""Finds equal rows among the lookups of a table: a hash table whose entries are chains in the order of the samples."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .bounds import BLOCK_SHIFT
from .compiled import serial


class Chains(NamedTuple):
    """Scratch memory of one thread, for up to L lookups."""

    position: NDArray[np.int32]  # [L], which ids belong to the shard
    following: NDArray[np.int32]  # [L], the next lookup of the same row, or -1
    head: NDArray[np.int32]  # [L], per unique row: its first lookup
    row: NDArray[np.int32]  # [L], per unique row
    slot: NDArray[np.int32]  # [at least 2 L, a power of two]


@serial
def shard_of(row: int, shard_bits: int) -> int:
    """Rows of one block of bounds share a shard, so that no two threads write the same bound."""
    if shard_bits == 0:
        return 0
    return np.int64(np.uint32(np.uint32(row >> BLOCK_SHIFT) * np.uint32(0x85EBCA6B)) >> np.uint32(32 - shard_bits))


@serial
def chain_shard(
    ids: NDArray[np.int32], start: int, end: int, shard: int, shard_bits: int, num_rows: int, chains: Chains
) -> int:
    """Chains the lookups start to end that fall into the shard; returns the number of unique rows."""
    count = 0
    for i in range(start, end):
        chains.position[count] = i
        count += 1 if shard_of(ids[i], shard_bits) == shard else 0
    slot_bits = 1
    while (1 << slot_bits) < 2 * count:
        slot_bits += 1
    mask = (1 << slot_bits) - 1
    chains.slot[: mask + 1] = -1
    direct = num_rows <= mask + 1
    num_unique = 0
    # Backwards: putting each lookup at the head of its chain leaves the chain in the order of the samples.
    for i in range(count - 1, -1, -1):
        row = ids[chains.position[i]]
        spread = np.uint32(np.uint32(row) * np.uint32(0x9E3779B1)) >> np.uint32(32 - slot_bits)
        place = np.int64(row) if direct else np.int64(spread)
        unique = chains.slot[place]
        while unique >= 0 and chains.row[unique] != row:
            place = (place + 1) & mask
            unique = chains.slot[place]
        if unique < 0:
            chains.slot[place] = num_unique
            chains.row[num_unique] = row
            chains.following[i] = -1
            chains.head[num_unique] = i
            num_unique += 1
        else:
            chains.following[i] = chains.head[unique]
            chains.head[unique] = i
    return num_unique
