"""Second pass: shards out of the spool, several at a time; a shard that is done is noted and not done again."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.base.decode import UnreadableError, decoded, read_json
from dqrm_cpu.base.files import unwritable
from dqrm_cpu.data.prepare.bag_records import RecordBags
from dqrm_cpu.data.prepare.buffers import MemoryBlock
from dqrm_cpu.data.prepare.output.fit import fit_transforms
from dqrm_cpu.data.prepare.output.rare import IdRemap
from dqrm_cpu.data.prepare.output.split import BinSplit, ShardJob
from dqrm_cpu.data.prepare.output.time_split import TRAIN, TimeParts
from dqrm_cpu.data.prepare.records import (
    NUM_BINS,
    Columns,
    by_bin,
    copy_records,
    count_in_bins,
    from_records,
    largest_in_columns,
    place_rows,
    shuffled,
)
from dqrm_cpu.data.prepare.row_layout import Layout
from dqrm_cpu.data.prepare.spool import SpoolFile, read_records
from dqrm_cpu.data.prepare.transforms import RecordTransforms
from dqrm_cpu.data.store.layout import ALIGNMENT, BLOCK_ROWS
from dqrm_cpu.data.store.manifest import PART_NAMES, ShardFile
from dqrm_cpu.data.store.schema import Schema
from dqrm_cpu.data.store.transform import Transform
from dqrm_cpu.data.store.writer import BagBlock, RowBlock, write_blocks
from dqrm_cpu.errors import DataError

_MASK = 2**64 - 1


class ShardBuffers:
    """Memory for the records of one shard, used again for later ones: pages that were never touched cost the most."""

    def __init__(self, layout: Layout, arena: MemoryBlock) -> None:
        schema = layout.schema
        self._arena = arena
        self._width = layout.raw.num_dense + layout.raw.num_tables + 1
        self._records, self._scratch = self._words(0), self._words(0)
        self.bags = RecordBags(layout)
        self.block = RowBlock(
            np.empty(BLOCK_ROWS, np.uint8),
            np.empty((BLOCK_ROWS, schema.num_dense), np.float32),
            np.empty((schema.num_tables, BLOCK_ROWS), np.int32),
        )

    def records(self, count: int) -> NDArray[np.uint32]:
        """Returns memory for so many rows of a shard."""
        if count > self._records.shape[0]:
            self._records = self._words(count + count // 32)  # shards of shuffled rows are about equal
        return self._records[:count]

    def scratch(self, count: int) -> NDArray[np.uint32]:
        """Returns memory for rows out of which some are chosen."""
        if count > self._scratch.shape[0]:
            self._scratch = self._words(count + count // 32)
        return self._scratch[:count]

    def _words(self, count: int) -> NDArray[np.uint32]:
        return self._arena.take((count, self._width), np.dtype(np.uint32))


class ShardRows(NamedTuple):
    """The rows of a shard, as the writer takes them."""

    num_rows: int
    largest_id: NDArray[np.int32]  # per column
    blocks: Iterator[RowBlock | BagBlock]  # in the order in which they are stored; each overwrites the last one


class SpoolReader:
    """Reads shards' rows from the spool; several threads may call it, each with buffers of its own."""

    def __init__(
        self,
        files: Sequence[SpoolFile],
        layout: Layout,
        num_train: int,
        seed: int,
        remap: IdRemap,
        parts: TimeParts | None = None,
        bins: BinSplit | None = None,
    ) -> None:
        """Takes the spool, and what says which rows are in which part.

        That is `parts` where time decides, `bins` where chance does; else the first num_train rows are for training.
        """
        self._files = list(files)
        self.layout, self._schema = layout, layout.schema
        self._parts = parts
        self._transforms = RecordTransforms(layout, ())
        self._num_train = num_train
        self._bins = bins
        self._seed = seed
        self._remap = remap

    def fit(self, arena: MemoryBlock) -> tuple[Transform, ...]:
        """Fits the transforms of the layout on training rows."""

        def records(job: ShardJob) -> NDArray[np.uint32]:
            return self._train_records(job, ShardBuffers(self.layout, arena))[0]

        return fit_transforms(
            self.layout, records, self._num_train, NUM_BINS if self._bins is None else self._bins.train
        )

    def use(self, transforms: tuple[Transform, ...]) -> None:
        """Takes the transforms that the rows of every shard go through."""
        self._transforms = RecordTransforms(self.layout, transforms)

    def read(self, job: ShardJob, space: ShardBuffers) -> ShardRows:
        """Reads the rows of one shard in the order in which they are stored; they live in the buffers."""
        space.bags.clear()
        records, order = self._ordered_rows(job, space) if job.in_order else self._train_rows(job, space)
        first_id, num_tables = self._schema.num_dense, self._schema.num_tables
        self._remap.apply(records, self.layout.raw.num_dense, space.bags)
        self._transforms.apply(records)
        largest = largest_in_columns(records)[first_id : first_id + num_tables].astype(np.int32)
        largest[space.bags.tables] = space.bags.largest(records, first_id)
        return ShardRows(order.size, largest, _blocks(records, order, space))

    def _train_rows(self, job: ShardJob, space: ShardBuffers) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        records, order = self._train_records(job, space)
        # Apart from the seed of the bins, or the shuffle would depend on what chose the rows.
        key = (self._seed * 0xD1342543DE82EF95 + 2 * job.number + 1) & _MASK
        return records, order[shuffled(np.uint64(key), order.size)]

    def _train_records(self, job: ShardJob, space: ShardBuffers) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Reads the training rows of some bins, file by file, with their order by bins."""
        files = self._files
        kept = [self._kept(number, file, job) for number, file in enumerate(files)]
        total = sum(int(counts.sum()) for counts in kept)
        records = space.records(total)
        done = 0
        for file, counts in zip(files, kept, strict=True):
            count = int(counts.sum())
            mine = records[done : done + count]
            self._read_bins(file, job, counts, mine, space)
            space.bags.read(file, int(file.bounds[job.first]), int(file.bounds[job.last]), mine)
            done += count
        order = np.empty(total, np.int64)
        by_bin(np.array(kept, np.int64).reshape(len(files), job.last - job.first), order)
        return records, order

    def _kept(self, number: int, file: SpoolFile, job: ShardJob) -> NDArray[np.int64]:
        """Counts the training rows of each of the job's bins; they come first in their bin, unless time decides."""
        if self._parts is not None:
            return self._parts.counts[number][TRAIN, job.first : job.last]
        of_part = self._num_train if self._bins is None else sys.maxsize  # all rows of a part's bins belong to it
        inside = max(0, of_part - file.header.first_row)
        if inside >= file.header.rows:
            bounds = file.bounds.astype(np.int64)
            return bounds[job.first + 1 : job.last + 1] - bounds[job.first : job.last]
        counts = np.zeros(NUM_BINS, np.int64)
        count_in_bins(np.uint64(self._seed), file.header.first_row, inside, counts)
        return counts[job.first : job.last]

    def _read_bins(
        self,
        file: SpoolFile,
        job: ShardJob,
        counts: NDArray[np.int64],
        records: NDArray[np.uint32],
        space: ShardBuffers,
    ) -> None:
        low, high = int(file.bounds[job.first]), int(file.bounds[job.last])
        if high - low == records.shape[0]:
            read_records(file, low, records)
            return
        all_rows = space.scratch(high - low)
        read_records(file, low, all_rows)
        if self._parts is not None:
            copy_records(all_rows, np.flatnonzero(self._parts.chosen(all_rows, "train")), records)
            return
        starts = file.bounds[job.first : job.last].astype(np.int64) - low
        chosen = [np.arange(start, start + count) for start, count in zip(starts, counts, strict=True)]
        copy_records(all_rows, np.concatenate(chosen), records)

    def _ordered_rows(self, job: ShardJob, space: ShardBuffers) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Reads rows first to last - 1: of all rows, or of those of the job's part where time decides."""
        first, last = job.first, job.last
        records = space.records(last - first)
        start = 0
        for number, file in enumerate(self._files):
            count = file.header.rows if self._parts is None else self._parts.rows_of(number, job.part)
            low, high = max(first, start), min(last, start + count)
            if low < high:
                all_rows = space.scratch(file.header.rows)
                read_records(file, 0, all_rows)
                places = np.empty(file.header.rows, np.int32)
                place_rows(np.uint64(self._seed), file.header.first_row, np.zeros(NUM_BINS + 1, np.int64), places)
                if self._parts is not None:
                    places = places[self._parts.chosen(all_rows, job.part)[places]]
                mine = records[low - first : high - first]
                copy_records(all_rows, places[low - start : high - start].astype(np.int64), mine)
                space.bags.read(file, 0, file.header.rows, mine)
            start += count
        return records, np.arange(last - first)


def _blocks(
    records: NDArray[np.uint32], order: NDArray[np.int64], space: ShardBuffers
) -> Iterator[RowBlock | BagBlock]:
    block = space.block
    for first in range(0, order.size, BLOCK_ROWS):
        rows = order[first : first + BLOCK_ROWS]
        label, dense, ids = block.label[: rows.size], block.dense[: rows.size], block.ids[:, : rows.size]
        from_records(records, rows, Columns(label, dense.view(np.uint32), ids))
        if space.bags.tables.size:
            yield BagBlock(label, dense, *space.bags.flattened(ids))
        else:
            yield RowBlock(label, dense, ids)


def write_shards(
    out: Path,
    notes: Path,
    schema: Schema,
    jobs: Sequence[ShardJob],
    reader: SpoolReader,
    workers: int,
    arena: MemoryBlock,
    advance: Callable[[int], None],
) -> dict[str, tuple[ShardFile, ...]]:
    """Writes all shards of all parts; calls `advance` with the number of rows of each."""
    notes.mkdir(exist_ok=True)
    each = arena.left // workers - ALIGNMENT
    spaces: SimpleQueue[ShardBuffers] = SimpleQueue()
    for _ in range(workers):
        spaces.put(ShardBuffers(reader.layout, arena.part(each)))

    def write(job: ShardJob) -> ShardFile:
        with contextlib.ExitStack() as lent:
            space = spaces.get()
            lent.callback(spaces.put, space)
            rows = reader.read(job, space)

            def blocks() -> Iterator[RowBlock | BagBlock]:
                yield from rows.blocks
                lent.close()  # another shard may have the memory while this one is forced to the disk

            bags = bool(reader.layout.bags)
            shard = write_blocks(out / job.name, schema, rows.num_rows, rows.largest_id, blocks(), bags=bags)
        note = notes / f"{job.name}.json"
        try:
            note.write_text(json.dumps(asdict(shard)))
        except OSError as error:
            raise unwritable(note, error, DataError) from error
        return shard

    done = dict(_finished(out, notes, jobs))
    advance(sum(shard.rows for shard in done.values()))
    with ThreadPoolExecutor(2 * workers, "dqrm-prepare") as pool:
        left = [pool.submit(write, job) for job in jobs if job.name not in done]
        try:
            for future in as_completed(left):
                shard = future.result()
                done[shard.name] = shard
                advance(shard.rows)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return {part: tuple(done[job.name] for job in jobs if job.part == part) for part in PART_NAMES}


def _finished(out: Path, notes: Path, jobs: Sequence[ShardJob]) -> Iterator[tuple[str, ShardFile]]:
    """Finds the shards of an earlier attempt: noted, there, and of the size that was noted."""
    for job in jobs:
        try:
            shard = decoded(read_json(notes / f"{job.name}.json"), ShardFile)
            if shard.name == job.name and (out / job.name).stat().st_size == shard.bytes:
                yield job.name, shard
        except (OSError, UnreadableError):  # it was never noted, or not to its end: the shard is written again
            continue
