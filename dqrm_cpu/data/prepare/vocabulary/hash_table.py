"""Keys of categories to ids by open addressing: id 0 is the reserved row, others in order of first appearance.

A slot holds 32 bits of the key above its id, 0 where free. They are the whole key where keys have 32 bits; wider keys
are compared in full with the list of keys.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.kernels.jit.compile import inlined, thorough_kernel
from dqrm_cpu.kernels.jit.memory import prefetch_byte, word_at

_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_LOW_HALF, _UPPER_HALF = np.uint64(0xFFFFFFFF), np.uint64(0xFFFFFFFF00000000)
_32, _64, _29 = np.uint64(32), np.uint64(64), np.uint64(29)
_AHEAD = 12

LARGEST_LOAD = 0.6
"""The largest share of slots in use; beyond it probes become long."""


class HashTable(NamedTuple):
    """The hash table of one column: a power of two of slots, and the keys of ids 1, 2, ..."""

    slots: NDArray[np.uint64]
    keys: NDArray[Any]  # uint32 or uint64


@inlined
def slot_hash(key: Any) -> Any:
    """Returns 64 bits whose upper ones choose the slot: neighbouring keys come far apart."""
    key = np.uint64(key)
    return (key ^ (key >> _29)) * _FACTOR


@inlined
def slot_tag(key: Any, hashed: Any, wide: int) -> Any:
    """Returns the upper half of the slot of a key, without the id."""
    return (hashed << _32) if wide else (np.uint64(key) << _32)


@inlined
def find_slot(slots: int, mask: int, shift: Any, keys: int, wide: int, key: Any) -> Any:
    """Finds (id, slot) of a key: id 0 and a free slot where it is not there. slots and keys are addresses."""
    hashed = slot_hash(key)
    wanted = slot_tag(key, hashed, wide)
    place = np.int64(hashed >> shift)
    while True:
        slot = word_at(slots, place * 8)
        if (slot & _UPPER_HALF) == wanted:
            identifier = np.int64(slot & _LOW_HALF)
            # The tag of key 0 is that of a free slot; callers never ask for key 0.
            if not wide or (identifier > 0 and word_at(keys, (identifier - 1) * 8) == key):
                return identifier, place
        if slot == np.uint64(0):
            return np.int64(0), place
        place = (place + 1) & mask


@inlined
def slot_shift(num_slots: int) -> Any:
    """Returns how far the hash of a key is shifted down to become a slot."""
    bits = np.uint64(0)
    while (np.int64(1) << np.int64(bits)) < num_slots:
        bits += np.uint64(1)
    return _64 - bits


@thorough_kernel
def assign_ids(table: HashTable, keys: NDArray[Any], ids: NDArray[np.int32], place: Any, capacity: int) -> None:
    """Writes ids of keys from place = int64[position, known] on; stops before more than `capacity` keys are known."""
    slots, known_keys, wide = table.slots, table.keys, np.int64(table.keys.itemsize == 8)
    at, keys_at, mask, shift = slots.ctypes.data, known_keys.ctypes.data, slots.shape[0] - 1, slot_shift(slots.shape[0])
    position, known, last = place[0], place[1], keys.shape[0] - 1
    while position < keys.shape[0]:
        prefetch_byte(at, np.int64(slot_hash(keys[min(position + _AHEAD, last)]) >> shift) * 8)
        key = np.uint64(keys[position])
        identifier = np.int64(0)
        if key != np.uint64(0):
            identifier, slot = find_slot(at, mask, shift, keys_at, wide, key)
            if identifier == 0:
                if known >= capacity:
                    break
                known_keys[known] = key
                known += 1
                slots[slot] = slot_tag(key, slot_hash(key), wide) | np.uint64(known)
                identifier = known
        ids[position] = identifier
        position += 1
    place[0], place[1] = position, known


@thorough_kernel
def find_ids(table: HashTable, keys: NDArray[Any], ids: NDArray[np.int32]) -> int:
    """Writes ids of keys, 0 for one that the table does not have; returns how many such cells there are."""
    slots, wide = table.slots, np.int64(table.keys.itemsize == 8)
    at, keys_at, mask, shift = slots.ctypes.data, table.keys.ctypes.data, slots.shape[0] - 1, slot_shift(slots.shape[0])
    unseen, last = 0, keys.shape[0] - 1
    for position in range(keys.shape[0]):
        prefetch_byte(at, np.int64(slot_hash(keys[min(position + _AHEAD, last)]) >> shift) * 8)
        key = np.uint64(keys[position])
        identifier = np.int64(0)
        if key != np.uint64(0):
            identifier, _ = find_slot(at, mask, shift, keys_at, wide, key)
            unseen += identifier == 0
        ids[position] = identifier
    return unseen


@thorough_kernel
def insert_keys(table: HashTable, count: int) -> None:
    """Fills empty slots from the first `count` keys, which are all different."""
    slots, keys, wide = table.slots, table.keys, np.int64(table.keys.itemsize == 8)
    at, mask, shift = slots.ctypes.data, slots.shape[0] - 1, slot_shift(slots.shape[0])
    for k in range(count):
        prefetch_byte(at, np.int64(slot_hash(keys[min(k + _AHEAD, count - 1)]) >> shift) * 8)
        key = np.uint64(keys[k])
        hashed = slot_hash(key)
        place = np.int64(hashed >> shift)
        while slots[place] != np.uint64(0):
            place = (place + 1) & mask
        slots[place] = slot_tag(key, hashed, wide) | np.uint64(k + 1)


@thorough_kernel
def fold_keys(keys: NDArray[Any], modulus: int) -> None:
    """Takes each key modulo `modulus`, in place."""
    divisor = np.uint64(modulus)
    for k in range(keys.shape[0]):
        keys[k] = np.uint64(keys[k]) % divisor


@thorough_kernel
def hash_ids(keys: NDArray[Any], rows: int, ids: NDArray[np.int32]) -> None:
    """Writes ids 1 to rows - 1 by hashing; 0 for key 0."""
    divisor = np.uint64(rows - 1)
    for k in range(keys.shape[0]):
        key = np.uint64(keys[k])
        hashed = slot_hash(key)
        hashed = slot_hash(hashed ^ (hashed >> _32))
        ids[k] = np.int32(0) if key == np.uint64(0) else np.int32(np.uint64(1) + (hashed >> _32) % divisor)
