"""Keys of categories to ids by open addressing: id 0 is the reserved row, others in order of first appearance.

A slot holds 32 bits of the key above its id, 0 where free. They are the whole key where keys have 32 bits; wider keys
are compared in full with the list of keys.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.data.prepare.compiled import inlined, kernel
from dqrm_cpu.data.prepare.words import prefetch, word_at

_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_LOW_HALF, _UPPER_HALF = np.uint64(0xFFFFFFFF), np.uint64(0xFFFFFFFF00000000)
_32, _64, _29 = np.uint64(32), np.uint64(64), np.uint64(29)
_AHEAD = 12

LARGEST_LOAD = 0.6
"""Of the slots: beyond it probes become long."""


class Lookup(NamedTuple):
    """One column: a power of two of slots, and the keys of ids 1, 2, ..."""

    slots: NDArray[np.uint64]
    keys: NDArray[Any]  # uint32 or uint64


@inlined
def spread(key: Any) -> Any:
    """64 bits whose upper ones choose the slot: neighbouring keys come far apart."""
    key = np.uint64(key)
    return (key ^ (key >> _29)) * _FACTOR


@inlined
def tag(key: Any, hashed: Any, wide: int) -> Any:
    """The upper half of the slot of a key, without the id."""
    return (hashed << _32) if wide else (np.uint64(key) << _32)


@inlined
def find(slots: int, mask: int, shift: Any, keys: int, wide: int, key: Any) -> Any:
    """(id, slot) of a key: id 0 where it is not there, and then the slot is free. slots and keys are addresses."""
    hashed = spread(key)
    wanted = tag(key, hashed, wide)
    place = np.int64(hashed >> shift)
    while True:
        slot = word_at(slots, place * 8)
        if (slot & _UPPER_HALF) == wanted:
            found = np.int64(slot & _LOW_HALF)
            # The tag of key 0 is that of a free slot; callers never ask for key 0.
            if not wide or (found > 0 and word_at(keys, (found - 1) * 8) == key):
                return found, place
        if slot == np.uint64(0):
            return np.int64(0), place
        place = (place + 1) & mask


@inlined
def shift_of(num_slots: int) -> Any:
    """How far a spread key is shifted down to become a slot."""
    bits = np.uint64(0)
    while (np.int64(1) << np.int64(bits)) < num_slots:
        bits += np.uint64(1)
    return _64 - bits


@kernel
def assign_ids(table: Lookup, keys: NDArray[Any], ids: NDArray[np.int32], place: Any, capacity: int) -> None:
    """ids of keys from place = int64[position, known] on; stops where a new key would be more than `capacity` keys."""
    slots, known_keys, wide = table.slots, table.keys, np.int64(table.keys.itemsize == 8)
    at, keys_at, mask, shift = slots.ctypes.data, known_keys.ctypes.data, slots.shape[0] - 1, shift_of(slots.shape[0])
    position, known, last = place[0], place[1], keys.shape[0] - 1
    while position < keys.shape[0]:
        prefetch(at, np.int64(spread(keys[min(position + _AHEAD, last)]) >> shift) * 8)
        key = np.uint64(keys[position])
        found = np.int64(0)
        if key != np.uint64(0):
            found, slot = find(at, mask, shift, keys_at, wide, key)
            if found == 0:
                if known >= capacity:
                    break
                known_keys[known] = key
                known += 1
                slots[slot] = tag(key, spread(key), wide) | np.uint64(known)
                found = known
        ids[position] = found
        position += 1
    place[0], place[1] = position, known


@kernel
def find_ids(table: Lookup, keys: NDArray[Any], ids: NDArray[np.int32]) -> int:
    """ids of keys, 0 for one that the table does not have; returns how many such cells there are."""
    slots, wide = table.slots, np.int64(table.keys.itemsize == 8)
    at, keys_at, mask, shift = slots.ctypes.data, table.keys.ctypes.data, slots.shape[0] - 1, shift_of(slots.shape[0])
    unseen, last = 0, keys.shape[0] - 1
    for position in range(keys.shape[0]):
        prefetch(at, np.int64(spread(keys[min(position + _AHEAD, last)]) >> shift) * 8)
        key = np.uint64(keys[position])
        found = np.int64(0)
        if key != np.uint64(0):
            found, _ = find(at, mask, shift, keys_at, wide, key)
            unseen += found == 0
        ids[position] = found
    return unseen


@kernel
def insert_keys(table: Lookup, count: int) -> None:
    """Fills empty slots from the first `count` keys, which are all different."""
    slots, keys, wide = table.slots, table.keys, np.int64(table.keys.itemsize == 8)
    at, mask, shift = slots.ctypes.data, slots.shape[0] - 1, shift_of(slots.shape[0])
    for k in range(count):
        prefetch(at, np.int64(spread(keys[min(k + _AHEAD, count - 1)]) >> shift) * 8)
        key = np.uint64(keys[k])
        hashed = spread(key)
        place = np.int64(hashed >> shift)
        while slots[place] != np.uint64(0):
            place = (place + 1) & mask
        slots[place] = tag(key, hashed, wide) | np.uint64(k + 1)


@kernel
def fold_keys(keys: NDArray[Any], modulus: int) -> None:
    """Each key modulo `modulus`, in place."""
    divisor = np.uint64(modulus)
    for k in range(keys.shape[0]):
        keys[k] = np.uint64(keys[k]) % divisor


@kernel
def hash_ids(keys: NDArray[Any], rows: int, ids: NDArray[np.int32]) -> None:
    """ids 1 to rows - 1 by hashing; 0 for key 0."""
    divisor = np.uint64(rows - 1)
    for k in range(keys.shape[0]):
        key = np.uint64(keys[k])
        hashed = spread(key)
        hashed = spread(hashed ^ (hashed >> _32))
        ids[k] = np.int32(0) if key == np.uint64(0) else np.int32(np.uint64(1) + (hashed >> _32) % divisor)
