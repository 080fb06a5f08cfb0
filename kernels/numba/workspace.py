"""UpdateScratch memory of the kernels, kept from step to step and made larger when a batch needs it."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..jit.memory import FLOATS_PER_LINE
from ..jit.simd import LANES
from ..types import Bags, Tables
from .absmax_tracker import SIGHTING_LONGS
from .duplicate_rows import CHAIN_LISTS, DENSE_SUMS, SLOTS_PER_LOOKUP
from .lookups import Lookups, fill_samples
from .update import SUM_WIDTH, UpdateScratch

_LOOKUPS_PER_SHARD = 1024
_MOST_SHARD_BITS = 6


class _Size(NamedTuple):
    """The sizes that the scratch memory of the updates has room for."""

    threads: int
    lookups_per_table: int
    dim: int
    items: int


class KernelWorkspace:
    """UpdateScratch memory of one set of kernels, which one thread uses at a time."""

    def __init__(self) -> None:
        self._size = _Size(0, 0, 0, 0)
        self._scratch = UpdateScratch(0, 0, 0, 0, 0, 0, 0, 0, 0)
        self._memory: tuple[Tensor, ...] = ()
        self._samples = torch.empty(1, dtype=torch.int32)
        self._table_start = torch.zeros(1, dtype=torch.int64)
        self._one_hot = (0, 0)  # tables and batch of table_start
        self._floats = torch.empty(0)

    def lookups(self, tables: Tables, bags: Bags) -> tuple[Lookups, int]:
        """Returns the bags as the kernels read them, valid until the next call; and the most lookups of a table."""
        num_tables = tables.num_tables
        if bags.offsets is None:
            batch = bags.ids.shape[1]
            if self._one_hot != (num_tables, batch):
                self._table_start = torch.arange(num_tables + 1) * batch
                self._one_hot = (num_tables, batch)
            return Lookups(bags.ids.data_ptr(), self._table_start.data_ptr(), 0, 0, batch, 0), batch
        offsets, num_bags = bags.offsets, bags.offsets.numel() - 1
        batch = num_bags // num_tables
        if self._samples.numel() < bags.ids.numel():
            self._samples = torch.empty(bags.ids.numel(), dtype=torch.int32)
        fill_samples(offsets.data_ptr(), num_bags, batch, self._samples.data_ptr())
        start = offsets[::batch].contiguous() if batch else torch.zeros(num_tables + 1, dtype=torch.int64)
        self._table_start, self._one_hot = start, (0, 0)
        places = (bags.ids.data_ptr(), start.data_ptr(), self._samples.data_ptr(), offsets.data_ptr())
        return Lookups(*places, batch, int(bags.mean)), int(start.diff().max())

    def scratch(self, lookups_per_table: int, dim: int, items: int) -> UpdateScratch:
        """Returns scratch memory at least that large; the same memory as before if it was."""
        wanted = _Size(torch.get_num_threads(), lookups_per_table, dim, items)
        have = self._size
        if have.threads != wanted.threads or any(a < b for a, b in zip(have, wanted, strict=True)):
            self._allocate(wanted)
        return self._scratch

    def _allocate(self, size: _Size) -> None:
        length = -(-size.lookups_per_table // FLOATS_PER_LINE) * FLOATS_PER_LINE + LANES
        slots = 1 << (SLOTS_PER_LOOKUP * length - 1).bit_length()
        padded = -(-size.dim // SUM_WIDTH) * SUM_WIDTH
        self._size = size
        self._memory = (
            torch.empty(size.threads * (CHAIN_LISTS * length + slots), dtype=torch.int32),
            torch.empty(size.threads * 2 * padded),
            torch.empty(size.threads * DENSE_SUMS),
            torch.empty(max(size.items, 1), dtype=torch.int64),
            torch.empty(max(size.items, 1), dtype=torch.int64),  # tables are never more than items
            torch.empty(max(size.items, 1) * SIGHTING_LONGS, dtype=torch.int64),
        )
        chains, gradient, sums, claims, done, sightings = (part.data_ptr() for part in self._memory)
        self._scratch = UpdateScratch(chains, length, slots, gradient, sums, claims, done, sightings, size.threads)

    def floats(self, count: int) -> int:
        """Returns the address of f32[count], for one call."""
        if self._floats.numel() < count:
            self._floats = torch.empty(count)
        return self._floats.data_ptr()


def shard_bits(lookups_per_table: int) -> int:
    """Returns how finely tables are cut: by the batch alone, so that results do not depend on the threads."""
    shards = max(lookups_per_table // _LOOKUPS_PER_SHARD, 1)
    return min(shards.bit_length() - 1, _MOST_SHARD_BITS)
