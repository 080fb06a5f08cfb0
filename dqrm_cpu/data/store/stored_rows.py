"""The rows of one part of a prepared data set, out of its shards' memory maps: any of them, or in an epoch's order."""

import itertools
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dqrm_cpu.data.batch import Batch
from dqrm_cpu.data.store import copying
from dqrm_cpu.data.store.copying import Target
from dqrm_cpu.data.store.layout import BLOCK_ROWS, Section
from dqrm_cpu.data.store.manifest import Manifest
from dqrm_cpu.data.store.mapping_faults import name_unreadable_files
from dqrm_cpu.data.store.order import Order
from dqrm_cpu.data.store.shard import MappedShard, columns_of, require_size
from dqrm_cpu.errors import DataError

MOST_MAPPED = 256
"""Shards kept mapped between reads: every map holds a file descriptor, and a process may have as few as 1,024."""

_LOOKED_AT = 8
"""Shards whose size is asked for again at each read; a question takes less than a microsecond."""


class StoredRows:
    """Rows 0 to num_rows - 1 of a part; a block is checked against its checksums when it is read for the first time.

    Reading is safe from several threads, one at a time.
    """

    def __init__(self, directory: Path, manifest: Manifest, part: str) -> None:
        name_unreadable_files()
        self.num_rows = manifest.num_rows(part)
        self.schema = manifest.schema
        self._num_features, self.num_tables = len(manifest.schema.features), manifest.schema.num_tables
        self._directory, self._manifest, self._files = directory, manifest, manifest.parts[part]
        # Before memory is planned by what the manifest says.
        for file in self._files:
            require_size(directory / file.name, file)
        self._first_block, self._places = _plan([shard.rows for shard in self._files], self.num_tables)
        self._checked = np.zeros(self._places.shard.size, np.bool_)
        self._mapped: OrderedDict[int, MappedShard] = OrderedDict()
        self._unmapped = np.empty(64, np.int64)
        self._lock = threading.Lock()
        self.bags = self._holds_bags()

    def rows(self, start: int, stop: int) -> Batch:
        """Returns rows start to stop - 1 in new tensors."""
        self._require(start, stop)
        return self.take(np.arange(start, stop)) if self.bags else self._ranged(start, stop)

    def take(self, rows: NDArray[np.int64]) -> Batch:
        """Returns the rows of these numbers, in this order, in new tensors."""
        if self.bags:
            return self._take_bags(rows)
        target = self.new_target(rows.size)
        self.gather(rows, np.asarray([rows.size]), np.zeros(1, np.int64), target)
        return batch_of(target, self.num_tables, 0, rows.size)

    def new_target(self, rows: int) -> copying.Target:
        """Returns arrays for so many rows, one id per column."""
        dense, label = np.empty((rows, self._num_features), np.float32), np.empty(rows, np.float32)
        weight = np.empty(rows if self.schema.weight else 0, np.float32)
        return copying.Target(dense, np.empty(self.num_tables * rows, np.int32), label, weight)

    def copy(
        self, first: NDArray[np.int64], num_rows: NDArray[np.int64], at: NDArray[np.int64], target: copying.Target
    ) -> None:
        """Copies rows first[s] to first[s] + num_rows[s] - 1, which share s is, to row at[s] of the target and on."""
        some = num_rows > 0
        runs = first[some], num_rows[some]
        with self._lock:
            self._begin_reading()
            while count := copying.unmapped_in_runs(self._places, *runs, self._unmapped):
                self._map_blocks(count)
            copying.copy_runs(self._places, *runs, at[some], target)

    def gather(
        self, rows: NDArray[np.int64], num_rows: NDArray[np.int64], at: NDArray[np.int64], target: copying.Target
    ) -> None:
        """Copies rows[at[s] : at[s] + num_rows[s]], which share s is, to row at[s] of the target and on."""
        self._require_rows(rows)
        with self._lock:
            self._map_rows(rows)
            copying.gather_rows(self._places, rows, num_rows, at, target)

    def labels(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Returns the labels of rows start to stop - 1; other columns are neither read nor checked."""
        self._require(start, stop)
        block_start = self._places.block_start
        labels = np.empty(stop - start, np.uint8)
        first = int(np.searchsorted(block_start, start, "right")) - 1
        with self._lock:
            self._begin_reading()
            for block in range(first, int(np.searchsorted(block_start, stop, "left"))):
                low, high = int(block_start[block]), int(block_start[block + 1])
                shard, within = self._shard_of(block)
                values = shard.labels(within)
                labels[max(low, start) - start : min(high, stop) - start] = values[
                    max(start - low, 0) : min(stop, high) - low
                ]
        return labels

    def _holds_bags(self) -> bool:
        """Asks the first shard; every other must be of the same kind."""
        if not self._files:
            return False
        return MappedShard(self._directory / self._files[0].name, self._files[0]).header.bags

    def _ranged(self, start: int, stop: int) -> Batch:
        target = self.new_target(stop - start)
        self.copy(np.asarray([start]), np.asarray([stop - start]), np.zeros(1, np.int64), target)
        return batch_of(target, self.num_tables, 0, stop - start)

    def _take_bags(self, rows: NDArray[np.int64]) -> Batch:
        self._require_rows(rows)
        target = self.new_target(rows.size)
        offsets = np.empty(self.num_tables * rows.size + 1, np.int64)
        with self._lock:
            self._map_rows(rows)
            copying.gather_dense(self._places, rows, target.dense, target.label, target.weight)
            copying.count_ids(self._places, rows, offsets)
            ids = np.empty(int(offsets[-1]), np.int32)
            copying.gather_bags(self._places, rows, offsets, ids)
        dense, label = torch.from_numpy(target.dense), torch.from_numpy(target.label)
        weight = torch.from_numpy(target.weight) if self.schema.weight else None
        return Batch(dense, torch.from_numpy(ids), torch.from_numpy(offsets), label, weight)

    def _map_rows(self, rows: NDArray[np.int64]) -> None:
        self._begin_reading()
        while count := copying.unmapped_in_rows(self._places, rows, self._unmapped):
            self._map_blocks(count)

    def _map_blocks(self, count: int) -> None:
        """Checks the blocks that were noted, once each, and says where they lie."""
        for block in self._unmapped[:count].tolist():
            shard, within = self._shard_of(block)
            if not self._checked[block]:
                shard.check_block(within)
                self._checked[block] = True
            for section, address in zip(Section, self._places[2:6], strict=True):
                if section < shard.header.sections.shape[1]:
                    address[block] = shard.address(within, section)

    def _shard_of(self, block: int) -> tuple[MappedShard, int]:
        """Returns the mapped shard that holds a block, and the block's number within it."""
        number = int(self._places.shard[block])
        shard = self._mapped.get(number)
        if shard is None:
            shard = self._mapped[number] = self._open(number)
        self._mapped.move_to_end(number)
        return shard, block - int(self._first_block[number])

    def _open(self, number: int) -> MappedShard:
        manifest, file = self._manifest, self._files[number]
        shard = MappedShard(self._directory / file.name, file)
        shard.require_schema(manifest.schema, manifest.table_rows, self.bags)
        self._places.column[number] = columns_of(shard)
        self._places.width[number] = shard.id_bytes
        return shard

    def _begin_reading(self) -> None:
        """Looks again at the shards that were read last, and unmaps the oldest.

        That happens only between reads: within one, every block that was mapped is still to be copied from.
        """
        for shard in itertools.islice(reversed(self._mapped.values()), _LOOKED_AT):
            shard.require_whole()
        while len(self._mapped) > MOST_MAPPED:
            number, _ = self._mapped.popitem(last=False)
            blocks = slice(int(self._first_block[number]), int(self._first_block[number + 1]))
            for address in self._places[2:6]:
                address[blocks] = 0

    def _require_rows(self, rows: NDArray[np.int64]) -> None:
        """Kernels follow row numbers without looking."""
        if rows.size:
            self._require(int(rows.min()), int(rows.max()) + 1)

    def _require(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.num_rows:
            raise DataError(f"rows {start} to {stop} of a part of {self.num_rows}: want 0 <= start <= stop <= its rows")


def batch_of(target: copying.Target, num_tables: int, first: int, rows: int) -> Batch:
    """Returns the share of so many rows that starts at row `first` of a target, as a view of it."""
    ids = target.ids[num_tables * first : num_tables * (first + rows)].reshape(num_tables, rows)
    dense, label = target.dense[first : first + rows], target.label[first : first + rows]
    weight = torch.from_numpy(target.weight[first : first + rows]) if target.weight.size else None
    return Batch(torch.from_numpy(dense), torch.from_numpy(ids), None, torch.from_numpy(label), weight)


def _plan(shard_rows: Sequence[int], num_tables: int) -> tuple[NDArray[np.int64], copying.Places]:
    """Returns the first block of each shard and the end, and the places of all blocks, of which none is mapped."""
    num_shards = len(shard_rows)
    blocks = np.asarray([-(-rows // BLOCK_ROWS) for rows in shard_rows], np.int64)
    first_block = np.concatenate([np.zeros(1, np.int64), np.cumsum(blocks)])
    sizes = np.full(int(first_block[-1]), BLOCK_ROWS, np.int64)
    filled = np.flatnonzero(blocks)
    sizes[first_block[1:][filled] - 1] -= (blocks * BLOCK_ROWS - np.asarray(shard_rows, np.int64))[filled]
    label, dense, ids, offsets = np.zeros((4, sizes.size), np.int64)
    return first_block, copying.Places(
        block_start=np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)]),
        shard=np.repeat(np.arange(num_shards, dtype=np.int32), blocks),
        label=label,
        dense=dense,
        ids=ids,
        offsets=offsets,
        last_block=first_block[1:] - 1,
        column=np.zeros((num_shards, 2, num_tables), np.int64),
        width=np.zeros((num_shards, num_tables), np.int64),
    )


class Stream:
    """A part in the order in which an epoch visits it; without an order, positions are row numbers.

    As a `RowSource` it shows the first epoch.
    """

    def __init__(self, stored: StoredRows, num_rows: int, order: Order | None = None) -> None:
        self._stored = stored
        self._order = order
        self.num_rows = num_rows if order is None else order.num_rows
        self.epochs_differ = order is not None and order.reshuffle
        self.bags, self.num_tables = stored.bags, stored.num_tables
        self.schema = stored.schema

    def rows(self, start: int, stop: int) -> Batch:
        """Returns positions start to stop - 1 of the first epoch."""
        return self.batch(0, start, stop)

    def batch(self, epoch: int, start: int, stop: int) -> Batch:
        """Returns positions start to stop - 1 of an epoch, in new tensors."""
        if self._order is None:
            return self._stored.rows(start, stop)
        return self._stored.take(self._order.rows(epoch, start, stop))

    def row_numbers(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        """Returns which stored rows are at positions start to stop - 1 of an epoch."""
        return np.arange(start, stop) if self._order is None else self._order.rows(epoch, start, stop)

    def new_target(self, rows: int) -> Target:
        """Returns arrays that `read` can fill."""
        return self._stored.new_target(rows)

    def read(
        self, epoch: int, first: NDArray[np.int64], num_rows: NDArray[np.int64], at: NDArray[np.int64], target: Target
    ) -> None:
        """Copies the num_rows[s] positions from first[s] on, which share s is, to row at[s] of the target and on.

        Shares lie one after another in the target. One id per column only.
        """
        if self._order is None:
            self._stored.copy(first, num_rows, at, target)
            return
        spans = zip(first.tolist(), num_rows.tolist(), strict=True)
        rows = [self._order.rows(epoch, start, start + count) for start, count in spans]
        self._stored.gather(np.concatenate(rows), num_rows, at, target)
