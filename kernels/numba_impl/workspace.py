"""Scratch memory of the updates, kept from step to step and made larger when a batch needs it."""

import numba
import numpy as np

from ..types import Bags, Tables
from .lookups import Lookups, fill_samples
from .update import Scratch, allocate_scratch

_LOOKUPS_PER_SHARD = 512
_MOST_SHARD_BITS = 6

_NO_SAMPLES, _NO_OFFSETS = np.empty(0, np.int32), np.empty(0, np.int64)


class Workspace:
    """Belongs to one set of kernels, which one thread uses at a time."""

    def __init__(self) -> None:
        self._scratch: Scratch | None = None
        self._size = (0, 0, 0, 0)
        self._samples = _NO_SAMPLES
        self._one_hot_start = _NO_OFFSETS

    def lookups(self, tables: Tables, bags: Bags) -> tuple[Lookups, int]:
        """The bags as the kernels read them, and the most lookups that a table has."""
        ids, num_tables = bags.ids.numpy(), tables.num_tables
        if bags.offsets is None:
            batch = ids.shape[1]
            start = self._one_hot_start
            if start.size != num_tables + 1 or start[-1] != num_tables * batch:
                start = self._one_hot_start = np.arange(num_tables + 1, dtype=np.int64) * batch
            return Lookups(ids.reshape(-1), start, _NO_SAMPLES, _NO_OFFSETS, batch, False), batch
        offsets = bags.offsets.numpy()
        batch = (offsets.size - 1) // num_tables
        if self._samples.size < ids.size or not self._samples.size:
            self._samples = np.empty(max(ids.size, 1), np.int32)
        fill_samples(offsets, batch, self._samples)
        start = offsets[::batch].copy() if batch else np.zeros(num_tables + 1, np.int64)
        return Lookups(ids, start, self._samples, offsets, batch, bags.mean), int(np.diff(start).max())

    def scratch(self, lookups_per_table: int, dim: int, num_items: int) -> Scratch:
        """At least that large; the same memory as before if it was."""
        wanted = (numba.get_num_threads(), lookups_per_table, dim, num_items)
        fits = wanted[0] == self._size[0] and all(a <= b for a, b in zip(wanted, self._size, strict=True))
        if self._scratch is None or not fits:
            self._size = wanted
            self._scratch = allocate_scratch(*wanted)
        return self._scratch


def shard_bits(lookups_per_table: int) -> int:
    """How finely tables are cut: by the size of the batch alone, so that results do not depend on the threads."""
    shards = max(lookups_per_table // _LOOKUPS_PER_SHARD, 1)
    return min(shards.bit_length() - 1, _MOST_SHARD_BITS)
