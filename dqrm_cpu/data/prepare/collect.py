"""Second pass: the rows of one shard, out of every step of the spool."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.data.prepare.frequency import Remap
from dqrm_cpu.data.prepare.memory import Arena
from dqrm_cpu.data.prepare.order import (
    NUM_BINS,
    Columns,
    by_bin,
    copy_records,
    count_in_bins,
    from_records,
    place_rows,
    shuffled,
)
from dqrm_cpu.data.prepare.split import ShardJob
from dqrm_cpu.data.prepare.spool import Step, read_records
from dqrm_cpu.data.prepare.statistics import largest_in_columns
from dqrm_cpu.data.store.layout import BLOCK_ROWS
from dqrm_cpu.data.store.schema import Schema
from dqrm_cpu.data.store.writer import RowBlock

_MASK = 2**64 - 1


class Workspace:
    """Memory for the records of one shard, used again for later ones: pages that were never touched cost the most."""

    def __init__(self, schema: Schema, arena: Arena) -> None:
        self._arena = arena
        self._width = schema.num_dense + schema.num_tables + 1
        self._records, self._more = self._words(0), self._words(0)
        self.block = RowBlock(
            np.empty(BLOCK_ROWS, np.uint8),
            np.empty((BLOCK_ROWS, schema.num_dense), np.float32),
            np.empty((schema.num_tables, BLOCK_ROWS), np.int32),
        )

    def records(self, count: int) -> NDArray[np.uint32]:
        """Place for the rows of a shard."""
        if count > self._records.shape[0]:
            self._records = self._words(count + count // 32)  # shards of shuffled rows are about equal
        return self._records[:count]

    def more(self, count: int) -> NDArray[np.uint32]:
        """Place for rows out of which some are chosen."""
        if count > self._more.shape[0]:
            self._more = self._words(count + count // 32)
        return self._more[:count]

    def _words(self, count: int) -> NDArray[np.uint32]:
        return self._arena.take((count, self._width), np.dtype(np.uint32))


class ShardRows(NamedTuple):
    """The rows of a shard, as the writer takes them."""

    num_rows: int
    largest_id: NDArray[np.int32]  # per column
    blocks: Iterator[RowBlock]  # in the order in which they are stored; each overwrites the last one


class Collector:
    """Reads shards' rows from the spool; several threads may call it, each with a workspace of its own."""

    def __init__(self, steps: Sequence[Step], schema: Schema, num_train: int, seed: int, remap: Remap) -> None:
        self._steps = [step for step in steps if step.header.rows]
        self._schema = schema
        self._num_train = num_train
        self._seed = seed
        self._remap = remap

    def collect(self, job: ShardJob, space: Workspace) -> ShardRows:
        """The rows of one shard; they live in the workspace."""
        records, order = self._bins(job, space) if job.part == "train" else self._range(job.first, job.last, space)
        first_id, num_tables = self._schema.num_dense, self._schema.num_tables
        self._remap.apply(records, first_id)
        largest = largest_in_columns(records)[first_id : first_id + num_tables].astype(np.int32)
        return ShardRows(order.size, largest, _blocks(records, order, space.block))

    def _bins(self, job: ShardJob, space: Workspace) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        steps = [step for step in self._steps if step.header.first_row < self._num_train]
        kept = [self._kept(step, job) for step in steps]
        total = sum(int(counts.sum()) for counts in kept)
        records = space.records(total)
        done = 0
        for step, counts in zip(steps, kept, strict=True):
            count = int(counts.sum())
            self._read_bins(step, job, counts, records[done : done + count], space)
            done += count
        order = np.empty(total, np.int64)
        by_bin(np.array(kept, np.int64).reshape(len(steps), job.last - job.first), order)
        # Apart from the seed of the bins, or the shuffle would depend on what chose the rows.
        key = (self._seed * 0xD1342543DE82EF95 + 2 * job.number + 1) & _MASK
        return records, order[shuffled(np.uint64(key), total)]

    def _kept(self, step: Step, job: ShardJob) -> NDArray[np.int64]:
        """How many rows of each of the job's bins are training rows: they come first in their bin."""
        inside = self._num_train - step.header.first_row
        if inside >= step.header.rows:
            bounds = step.bounds.astype(np.int64)
            return bounds[job.first + 1 : job.last + 1] - bounds[job.first : job.last]
        counts = np.zeros(NUM_BINS, np.int64)
        count_in_bins(np.uint64(self._seed), step.header.first_row, inside, counts)
        return counts[job.first : job.last]

    def _read_bins(
        self, step: Step, job: ShardJob, counts: NDArray[np.int64], records: NDArray[np.uint32], space: Workspace
    ) -> None:
        low, high = int(step.bounds[job.first]), int(step.bounds[job.last])
        if high - low == records.shape[0]:
            read_records(step, low, records)
            return
        all_rows = space.more(high - low)
        read_records(step, low, all_rows)
        starts = step.bounds[job.first : job.last].astype(np.int64) - low
        chosen = [np.arange(start, start + count) for start, count in zip(starts, counts, strict=True)]
        copy_records(all_rows, np.concatenate(chosen), records)

    def _range(self, first: int, last: int, space: Workspace) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        records = space.records(last - first)
        for step in self._steps:
            start = step.header.first_row
            low, high = max(first, start), min(last, start + step.header.rows)
            if low >= high:
                continue
            all_rows = space.more(step.header.rows)
            read_records(step, 0, all_rows)
            places = np.empty(step.header.rows, np.int32)
            place_rows(np.uint64(self._seed), start, np.zeros(NUM_BINS + 1, np.int64), places)
            copy_records(all_rows, places[low - start : high - start].astype(np.int64), records[low - first :])
        return records, np.arange(last - first)


def _blocks(records: NDArray[np.uint32], order: NDArray[np.int64], block: RowBlock) -> Iterator[RowBlock]:
    for first in range(0, order.size, BLOCK_ROWS):
        rows = order[first : first + BLOCK_ROWS]
        label, dense, ids = block.label[: rows.size], block.dense[: rows.size], block.ids[:, : rows.size]
        from_records(records, rows, Columns(label, dense.view(np.uint32), ids))
        yield RowBlock(label, dense, ids)
