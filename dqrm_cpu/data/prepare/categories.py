"""All categorical columns: keys to ids, several columns at a time."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.data.prepare.lookup import fold_keys, hash_ids
from dqrm_cpu.data.prepare.request import VocabularySettings
from dqrm_cpu.data.prepare.vocabulary import Vocabulary


@dataclass(frozen=True)
class MemoryLimit:
    """What vocabularies may take, and where they go beyond that."""

    num_bytes: int  # 0: no limit
    folder: Path
    note: Callable[[str], None]


class Categories:
    """Grows vocabularies, looks up given ones, or hashes."""

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
        """Given vocabularies, which stay as they are."""
        self.vocabularies = []
        for column in keys:
            self.vocabularies.append(Vocabulary.of_keys(column))
            self._limit_memory(0)

    def extend(self, new_keys: list[NDArray[Any]]) -> None:
        """What appeared in a step that was read before."""
        if self._settings.kind == "exact":
            self._limit_memory(max((keys.size for keys in new_keys), default=0))
            for vocabulary, keys in zip(self.vocabularies, new_keys, strict=True):
                vocabulary.extend(keys)

    def assign(
        self, pool: ThreadPoolExecutor, keys: NDArray[Any], ids: NDArray[np.int32]
    ) -> tuple[list[NDArray[Any]], tuple[int, ...]]:
        """ids[T, n] of keys[T, n]: (new keys, cells that the vocabulary does not have), each by column."""
        before = [vocabulary.num_keys for vocabulary in self.vocabularies]
        self._limit_memory(keys.shape[1])
        unseen = self._assign_columns(pool, keys, ids)
        nothing = np.empty(0, self.key_type)
        if self._settings.kind != "exact":
            return [nothing] * len(self._names), unseen
        return [v.keys[known:].copy() for v, known in zip(self.vocabularies, before, strict=True)], unseen

    def _assign_columns(self, pool: ThreadPoolExecutor, keys: NDArray[Any], ids: NDArray[np.int32]) -> tuple[int, ...]:
        """Every worker takes column after column: a task for each of them would cost more than a small column does."""
        one = self._one()
        unseen = [0] * len(self._names)
        left = iter(range(len(self._names)))

        def work() -> None:
            for t in left:
                unseen[t] = one(t, keys[t], ids[t])

        for task in [pool.submit(work) for _ in range(self._workers)]:
            task.result()
        return tuple(unseen)

    def _one(self) -> Callable[[int, NDArray[Any], NDArray[np.int32]], int]:
        settings = self._settings

        def assign_column(t: int, keys: NDArray[Any], ids: NDArray[np.int32]) -> int:
            if settings.max_ind_range:
                fold_keys(keys, settings.max_ind_range)
            if settings.kind == "hash":
                hash_ids(keys, settings.hash_rows, ids)
                return 0
            if settings.kind == "given":
                return self.vocabularies[t].find(keys, ids)
            self.vocabularies[t].assign(keys, ids)
            return 0

        return assign_column

    def _limit_memory(self, more_keys: int) -> None:
        """Moves the largest vocabularies to files until the others fit, even after so many more keys in each."""
        if not self._memory.num_bytes:
            return
        grows = self._settings.kind == "exact"
        inside = [t for t, vocabulary in enumerate(self.vocabularies) if not vocabulary.is_in_file]
        needed = {t: self.vocabularies[t].bytes_after(more_keys if grows else 0) for t in inside}
        while inside and sum(needed[t] for t in inside) > self._memory.num_bytes:
            largest = max(inside, key=lambda t: needed[t])
            inside.remove(largest)
            self.vocabularies[largest].move_to(self._memory.folder)
            self._memory.note(
                f"{self._names[largest]} outgrew --memory-budget with {self.vocabularies[largest].num_keys:,} "
                f"categories and goes on in a file in {self._memory.folder}, which is slower"
            )
