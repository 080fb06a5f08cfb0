"""Vocabularies: which row of its table each category has. Several columns are looked up at a time."""

import mmap
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.base.memory import format_size
from dqrm_cpu.data.prepare.buffers import zeros
from dqrm_cpu.data.prepare.request import VocabularySettings
from dqrm_cpu.data.prepare.vocabulary.hash_table import (
    LARGEST_LOAD,
    HashTable,
    assign_ids,
    find_ids,
    fold_keys,
    hash_ids,
    insert_keys,
)
from dqrm_cpu.errors import DataError

_FIRST_SLOTS = 1 << 10
_SMALL_SLOTS = 1 << 18
_MOST_KEYS = 2**31 - 2


@dataclass(frozen=True)
class MemoryLimit:
    """The memory that vocabularies may take, and the folder of those beyond it."""

    num_bytes: int  # 0: no limit
    folder: Path
    note: Callable[[str], None]


class Categories:
    """All categorical columns: grows vocabularies, perhaps from given ones, looks keys up in them, or hashes."""

    def __init__(
        self,
        settings: VocabularySettings,
        key_type: np.dtype[Any],
        names: tuple[str, ...],
        memory: MemoryLimit,
        workers: int,
    ) -> None:
        self._workers = workers
        self._settings = settings
        self._names = names
        self._memory = memory
        self.key_type = key_type
        self.vocabularies: list[Vocabulary] = []
        if settings.kind == "exact":
            self.vocabularies = [Vocabulary(key_type) for _ in names]

    def use(self, keys: list[NDArray[Any]]) -> None:
        """Takes the keys of ids 1, 2, ... of each column, which stay as they are, or grow."""
        self.vocabularies = []
        for column in keys:
            self.vocabularies.append(Vocabulary.of_keys(column))
            self._limit_memory(0)

    def extend(self, new_keys: list[NDArray[Any]]) -> None:
        """Adds the categories that first appeared in rows that were read before an interruption."""
        if self._settings.grows:
            self._limit_memory(max((keys.size for keys in new_keys), default=0))
            for vocabulary, keys in zip(self.vocabularies, new_keys, strict=True):
                vocabulary.extend(keys)

    def assign(
        self, pool: ThreadPoolExecutor, keys: Sequence[NDArray[Any]], ids: Sequence[NDArray[np.int32]]
    ) -> tuple[list[NDArray[Any]], tuple[int, ...]]:
        """Writes the ids of each column's keys: (new keys, cells that the vocabulary does not have), by column."""
        before = [vocabulary.num_keys for vocabulary in self.vocabularies]
        self._limit_memory(max((column.size for column in keys), default=0))
        unseen = self._assign_columns(pool, keys, ids)
        nothing = np.empty(0, self.key_type)
        if not self._settings.grows:
            return [nothing] * len(self._names), unseen
        return [v.keys[known:].copy() for v, known in zip(self.vocabularies, before, strict=True)], unseen

    def look_up(self, keys: Sequence[NDArray[Any]], ids: Sequence[NDArray[np.int32]]) -> None:
        """Writes the ids of each column's keys by a vocabulary that does not grow, on this thread alone."""
        for t in range(len(self._names)):
            self._assign_column(t, keys[t], ids[t])

    def _assign_columns(
        self, pool: ThreadPoolExecutor, keys: Sequence[NDArray[Any]], ids: Sequence[NDArray[np.int32]]
    ) -> tuple[int, ...]:
        """Has every worker take column after column: a task for each would cost more than a small column does."""
        unseen = [0] * len(self._names)
        left = iter(range(len(self._names)))

        def work() -> None:
            for t in left:
                unseen[t] = self._assign_column(t, keys[t], ids[t])

        for task in [pool.submit(work) for _ in range(self._workers)]:
            task.result()
        return tuple(unseen)

    def _assign_column(self, t: int, keys: NDArray[Any], ids: NDArray[np.int32]) -> int:
        settings = self._settings
        if settings.max_ind_range:
            fold_keys(keys, settings.max_ind_range)
        if settings.kind == "given":
            return self.vocabularies[t].find(keys, ids)
        if settings.kind == "hash":
            hash_ids(keys, settings.hash_rows, ids)
        else:
            self.vocabularies[t].assign(keys, ids)
        return 0

    def _limit_memory(self, more_keys: int) -> None:
        """Moves the largest vocabularies to files until the others fit, even after so many more keys in each."""
        if not self._memory.num_bytes:
            return
        inside = [t for t, vocabulary in enumerate(self.vocabularies) if not vocabulary.is_in_file]
        needed = {t: self.vocabularies[t].bytes_after(more_keys if self._settings.grows else 0) for t in inside}
        while inside and sum(needed[t] for t in inside) > self._memory.num_bytes:
            largest = max(inside, key=lambda t: needed[t])
            inside.remove(largest)
            self.vocabularies[largest].move_to(self._memory.folder)
            self._memory.note(
                f"{self._names[largest]} outgrew --memory-budget with {self.vocabularies[largest].num_keys:,} "
                f"categories and goes on in a file in {self._memory.folder}, which is slower"
            )


class Vocabulary:
    """The vocabulary of one column: it grows by `assign`; `find` gives a key that it does not have id 0."""

    def __init__(self, key_type: np.dtype[Any]) -> None:
        self._slots = np.zeros(_FIRST_SLOTS, np.uint64)
        self._keys = np.empty(_capacity(_FIRST_SLOTS), key_type)
        self._known = 0
        self._folder: Path | None = None

    @classmethod
    def of_keys(cls, keys: NDArray[Any]) -> "Vocabulary":
        """Makes a vocabulary in which keys[k] has id k + 1."""
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
        """Moves to files of this folder that have no name: they are gone with the process, however it ends."""
        self._folder = folder
        slots, keys = self._slots, self._keys
        self._slots, self._keys = self._zeros(slots.size, slots.dtype), self._zeros(keys.size, keys.dtype)
        self._slots[:], self._keys[:] = slots, keys

    @property
    def num_bytes(self) -> int:
        """Bytes that it takes in memory or in files."""
        return self._slots.nbytes + self._keys.nbytes

    def bytes_after(self, more_keys: int) -> int:
        """Returns the bytes that it would take with that many more keys, and while it grows to them."""
        slots = _slots_for(self._known + more_keys)
        if slots <= self._slots.size:
            return self.num_bytes
        return slots * 8 + _capacity(slots) * self._keys.itemsize + self._keys.nbytes

    def assign(self, keys: NDArray[Any], ids: NDArray[np.int32]) -> None:
        """Writes the ids of keys, new ones for new keys."""
        place = np.array([0, self._known], np.int64)
        while True:
            table = HashTable(self._slots, self._keys)
            assign_ids(table, keys, ids, place, self._keys.size)
            self._known = int(place[1])
            if place[0] == keys.size:
                return
            self._grow(self._known + 1)

    def find(self, keys: NDArray[Any], ids: NDArray[np.int32]) -> int:
        """Writes the ids of keys, 0 for unknown ones; returns how many cells were unknown."""
        return int(find_ids(HashTable(self._slots, self._keys), keys, ids))

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
        self._slots = self._zeros(slots, self._slots.dtype)
        keys = self._zeros(_capacity(slots), self._keys.dtype)
        keys[: self._known] = self._keys[: self._known]
        self._keys = keys
        insert_keys(HashTable(self._slots, self._keys), self._known)

    def _zeros(self, count: int, kind: np.dtype[Any]) -> NDArray[Any]:
        if self._folder is None:
            return zeros(count, kind)
        return np.frombuffer(_file_memory(self._folder, count * kind.itemsize), kind)


def _file_memory(folder: Path, num_bytes: int) -> mmap.mmap:
    """Maps zeros in a file. Its room is taken at once: a full disk would later end the process without a word."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, num_bytes)
            return mmap.mmap(file.fileno(), num_bytes)
    except OSError as error:
        raise DataError(
            f"a vocabulary outgrew --memory-budget, and its {format_size(num_bytes)} do not fit on the disk of "
            f"{folder} ({error.strerror}); make room or raise --memory-budget, and run the same command to go on"
        ) from error


def _capacity(slots: int) -> int:
    return int(slots * LARGEST_LOAD)


def _slots_for(keys: int) -> int:
    slots = _FIRST_SLOTS
    while _capacity(slots) < keys:
        slots *= 4 if slots < _SMALL_SLOTS else 2  # small ones are cheap, and growing means inserting all keys again
    return slots
