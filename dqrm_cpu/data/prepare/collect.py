"""Second pass: the rows of one shard, out of every step of the spool."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.data.prepare.order import NUM_BINS, Columns, by_bin, count_in_bins, from_records, place_rows, shuffled
from dqrm_cpu.data.prepare.split import ShardJob
from dqrm_cpu.data.prepare.spool import Step, read_records
from dqrm_cpu.data.store.schema import Schema

_MASK = 2**64 - 1


class Rows(NamedTuple):
    """The columns of a shard, as the writer takes them."""

    label: NDArray[np.uint8]
    dense: NDArray[np.float32]
    ids: NDArray[np.int32]

    def bits(self, part: slice) -> Columns:
        """Some of the rows, to be filled from records."""
        return Columns(self.label[part], self.dense[part].view(np.uint32), self.ids[:, part])


class Collector:
    """Reads shards' rows from the spool; several threads may call it."""

    def __init__(self, steps: Sequence[Step], schema: Schema, num_train: int, seed: int) -> None:
        self._steps = [step for step in steps if step.header.rows]
        self._schema = schema
        self._num_train = num_train
        self._seed = seed

    def collect(self, job: ShardJob) -> Rows:
        """The rows of one shard in the order in which they are stored."""
        return self._bins(job) if job.part == "train" else self._range(job.first, job.last)

    def _bins(self, job: ShardJob) -> Rows:
        steps = [step for step in self._steps if step.header.first_row < self._num_train]
        kept = [self._kept(step, job) for step in steps]
        total = sum(int(counts.sum()) for counts in kept)
        records = np.empty((total, self._width), np.uint32)
        done = 0
        for step, counts in zip(steps, kept, strict=True):
            count = int(counts.sum())
            self._read_bins(step, job, counts, records[done : done + count])
            done += count
        order = np.empty(total, np.int64)
        by_bin(np.array(kept, np.int64).reshape(len(steps), job.last - job.first), order)
        # Apart from the seed of the bins, or the shuffle would depend on what chose the rows.
        key = (self._seed * 0xD1342543DE82EF95 + 2 * job.number + 1) & _MASK
        rows = self._empty(total)
        from_records(records, order[shuffled(np.uint64(key), total)], rows.bits(slice(None)))
        return rows

    def _kept(self, step: Step, job: ShardJob) -> NDArray[np.int64]:
        """How many rows of each of the job's bins are training rows: they come first in their bin."""
        inside = self._num_train - step.header.first_row
        if inside >= step.header.rows:
            bounds = step.bounds.astype(np.int64)
            return bounds[job.first + 1 : job.last + 1] - bounds[job.first : job.last]
        counts = np.zeros(NUM_BINS, np.int64)
        count_in_bins(np.uint64(self._seed), step.header.first_row, inside, counts)
        return counts[job.first : job.last]

    def _read_bins(self, step: Step, job: ShardJob, counts: NDArray[np.int64], records: NDArray[np.uint32]) -> None:
        low, high = int(step.bounds[job.first]), int(step.bounds[job.last])
        if high - low == records.shape[0]:
            read_records(step, low, records)
            return
        all_rows = np.empty((high - low, self._width), np.uint32)
        read_records(step, low, all_rows)
        starts = step.bounds[job.first : job.last].astype(np.int64) - low
        chosen = [np.arange(start, start + count) for start, count in zip(starts, counts, strict=True)]
        records[:] = all_rows[np.concatenate(chosen)]

    def _range(self, first: int, last: int) -> Rows:
        rows = self._empty(last - first)
        for step in self._steps:
            start = step.header.first_row
            low, high = max(first, start), min(last, start + step.header.rows)
            if low >= high:
                continue
            records = np.empty((step.header.rows, self._width), np.uint32)
            read_records(step, 0, records)
            places = np.empty(step.header.rows, np.int32)
            place_rows(np.uint64(self._seed), start, np.zeros(NUM_BINS + 1, np.int64), places)
            order = places[low - start : high - start].astype(np.int64)
            into = slice(low - first, high - first)
            from_records(records, order, rows.bits(into))
        return rows

    @property
    def _width(self) -> int:
        return self._schema.num_dense + self._schema.num_tables + 1

    def _empty(self, count: int) -> Rows:
        schema = self._schema
        ids = np.empty((schema.num_tables, count), np.int32)
        return Rows(np.empty(count, np.uint8), np.empty((count, schema.num_dense), np.float32), ids)
