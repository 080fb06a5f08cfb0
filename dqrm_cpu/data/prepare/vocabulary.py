"""The vocabulary of one column: which row of the table each category has."""

import mmap
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.data.prepare.lookup import LARGEST_LOAD, Lookup, assign_ids, find_ids, insert_keys
from dqrm_cpu.data.prepare.memory import zeros
from dqrm_cpu.errors import DataError

_FIRST_SLOTS = 1 << 10
_SMALL_SLOTS = 1 << 18
_MOST_KEYS = 2**31 - 2


class Vocabulary:
    """Grows as keys come, or is frozen: then a key that it does not have gets id 0."""

    def __init__(self, key_type: np.dtype[Any]) -> None:
        self._slots = np.zeros(_FIRST_SLOTS, np.uint64)
        self._keys = np.empty(_capacity(_FIRST_SLOTS), key_type)
        self._known = 0
        self._folder: Path | None = None

    @classmethod
    def of_keys(cls, keys: NDArray[Any]) -> "Vocabulary":
        """A vocabulary in which keys[k] has id k + 1."""
        vocabulary = cls(keys.dtype)
        vocabulary.extend(keys)
        return vocabulary

    @property
    def num_keys(self) -> int:
        return self._known

    @property
    def keys(self) -> NDArray[Any]:
        """The keys of ids 1, 2, ...; a view that the next growth makes stale."""
        return self._keys[: self._known]

    @property
    def is_in_file(self) -> bool:
        """Whether it lies in files, from which the system keeps in memory what there is room for."""
        return self._folder is not None

    def move_to(self, folder: Path) -> None:
        """From now on in files of this folder that have no name: they are gone with the process, however it ends."""
        self._folder = folder
        slots, keys = self._slots, self._keys
        self._slots, self._keys = self._new_slots(slots.size), self._new_keys(keys.size)
        self._slots[:], self._keys[:] = slots, keys

    @property
    def num_bytes(self) -> int:
        """What it takes in memory or in files."""
        return self._slots.nbytes + self._keys.nbytes

    def bytes_after(self, more_keys: int) -> int:
        """What it would take with that many more keys, and while it grows to it."""
        slots = _slots_for(self._known + more_keys)
        if slots <= self._slots.size:
            return self.num_bytes
        return slots * 8 + _capacity(slots) * self._keys.itemsize + self._keys.nbytes

    def assign(self, keys: NDArray[Any], ids: NDArray[np.int32]) -> None:
        """ids of keys, new ones for new keys."""
        place = np.array([0, self._known], np.int64)
        while True:
            table = Lookup(self._slots, self._keys)
            assign_ids(table, keys, ids, place, self._keys.size)
            self._known = int(place[1])
            if place[0] == keys.size:
                return
            self._grow(self._known + 1)

    def find(self, keys: NDArray[Any], ids: NDArray[np.int32]) -> int:
        """ids of keys, 0 for unknown ones; returns how many cells were unknown."""
        return int(find_ids(Lookup(self._slots, self._keys), keys, ids))

    def extend(self, keys: NDArray[Any]) -> None:
        """Adds keys that are not there yet, in their order."""
        before, total = self._known, self._known + keys.size
        if keys.size and not keys.all():
            raise DataError("a vocabulary holds the key 0, which stands for a missing category; prepare it once more")
        scratch = np.empty(keys.size, np.int32)
        if total > self._keys.size:
            self._grow(total)
        self.assign(keys, scratch)
        if self._known - before != keys.size:
            raise DataError("a vocabulary holds a key twice; prepare it once more")

    def _grow(self, keys_wanted: int) -> None:
        if keys_wanted > _MOST_KEYS:
            raise DataError(
                f"a column with more than {_MOST_KEYS:,} categories; fold them with --max-ind-range N, "
                "or use --vocabulary hash"
            )
        slots = _slots_for(keys_wanted)
        self._slots = self._new_slots(slots)
        keys = self._new_keys(_capacity(slots))
        keys[: self._known] = self._keys[: self._known]
        self._keys = keys
        insert_keys(Lookup(self._slots, self._keys), self._known)

    def _new_slots(self, slots: int) -> NDArray[np.uint64]:
        return (
            zeros(slots, np.dtype(np.uint64))
            if self._folder is None
            else np.frombuffer(_file_memory(self._folder, slots * 8), np.uint64)
        )

    def _new_keys(self, count: int) -> NDArray[Any]:
        if self._folder is None:
            return zeros(count, self._keys.dtype)
        return np.frombuffer(_file_memory(self._folder, count * self._keys.itemsize), self._keys.dtype)


def _file_memory(folder: Path, num_bytes: int) -> mmap.mmap:
    """Zeros in a file. Its room is taken at once: a disk that fills up later would end the process without a word."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, num_bytes)
            return mmap.mmap(file.fileno(), num_bytes)
    except OSError as error:
        raise DataError(
            f"a vocabulary outgrew --memory-budget, and its {num_bytes / 1e9:.1f} GB do not fit on the disk of "
            f"{folder} ({error.strerror}); make room or raise --memory-budget, and run the same command to go on"
        ) from error


def _capacity(slots: int) -> int:
    return int(slots * LARGEST_LOAD)


def _slots_for(keys: int) -> int:
    slots = _FIRST_SLOTS
    while _capacity(slots) < keys:
        slots *= 4 if slots < _SMALL_SLOTS else 2  # small ones are cheap, and growing means inserting all keys again
    return slots
