"""First pass: every source once, in order, from text to files of the spool.

Blocks are parsed in parallel, ids are assigned block after block, and finished blocks are written while later ones are
parsed: the result is the same for any number of workers.
"""

import functools
import gc
import sys
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.data.prepare.bad_rows import BadRows
from dqrm_cpu.data.prepare.bag_records import file_values
from dqrm_cpu.data.prepare.buffers import PADDING, MemoryBlock, RowBuffers
from dqrm_cpu.data.prepare.estimate import num_row_buffers, num_text_buffers, rows_bytes
from dqrm_cpu.data.prepare.parse.parser import ParsedBlock, TextParser, count_lines
from dqrm_cpu.data.prepare.records import NUM_BINS, Columns, dense_statistics, place_rows, to_records
from dqrm_cpu.data.prepare.request import PrepareRequest
from dqrm_cpu.data.prepare.row_layout import FieldRole, Layout
from dqrm_cpu.data.prepare.sources.raw_file import RawFile, SourcePosition
from dqrm_cpu.data.prepare.sources.text_blocks import TextBlockReader, text_buffer_bytes
from dqrm_cpu.data.prepare.spool import Counts, SpoolFile, SpoolHeader, spool_path, write_spool_file
from dqrm_cpu.data.prepare.vocabulary.vocabulary import Categories
from dqrm_cpu.errors import DataError

_SWITCH_INTERVAL_S = 0.0002
"""With Python's own, 5 ms, the thread that reads text meanwhile would wait longer for the lock than it reads."""


@dataclass
class ScanPosition:
    """The place where the next block begins: in the spool, in the rows, and in the sources."""

    file: int = 0  # number in the spool
    row: int = 0
    line: int = 0  # in the source
    source: SourcePosition = field(default_factory=SourcePosition)


class Scanner:
    """Reads what is left of the sources into the spool."""

    def __init__(
        self, request: PrepareRequest, spool: Path, categories: Categories, bad_rows: BadRows, arena: MemoryBlock
    ) -> None:
        self._request, self._spool, self._arena = request, spool, arena
        self._categories, self._bad_rows = categories, bad_rows
        self._is_parquet = are_parquet(request.sources, "prepare them apart, the second with --vocabulary DIR")
        if not request.settings.layout.num_labels:
            raise DataError("rows without a label are nothing to train on; name the field of the label")
        # Nothing of a data set names its rows.
        self._layout = request.settings.layout.ignoring(FieldRole.KEY)
        self._parser = new_parser(self._layout, bad_rows, self._is_parquet)
        self._seed = np.uint64(request.settings.seed)

    def scan(self, position: ScanPosition, block_bytes: int) -> Generator[SpoolFile, None, None]:
        """Yields the files of the spool in order, from a position on, each once it is written."""
        workers, layout = self._request.resources.workers, self._request.settings.layout
        spare: SimpleQueue[RowBuffers] = SimpleQueue()
        for _ in range(num_row_buffers(workers)):
            spare.put(RowBuffers(layout, self._arena.part(rows_bytes(layout, block_bytes))))
        reader = self._new_reader(position.source, block_bytes, num_text_buffers(workers))
        with ThreadPoolExecutor(workers, "dqrm-prepare") as pool, reader:
            import_kernels()  # while the first blocks are read
            parsing: deque[Future[ParsedBlock]] = deque()
            writing: deque[Future[SpoolFile]] = deque()
            for block in reader:
                while len(parsing) > workers:
                    writing.append(self._settle(parsing.popleft().result(), position, reader, pool, spare))
                while len(writing) > workers - 1:
                    yield writing.popleft().result()
                parsing.append(pool.submit(self._parser.parse, block, spare.get()))
            while parsing:
                writing.append(self._settle(parsing.popleft().result(), position, reader, pool, spare))
                while len(writing) > workers - 1:
                    yield writing.popleft().result()
            while writing:
                yield writing.popleft().result()

    def _new_reader(self, start: SourcePosition, block_bytes: int, num_buffers: int) -> Any:
        request = self._request
        if self._is_parquet:
            return new_parquet_reader(request.sources, start, block_bytes, self._layout)
        shape, byte = (text_buffer_bytes(block_bytes),), np.dtype(np.uint8)
        buffers = [self._arena.take(shape, byte) for _ in range(num_buffers)]
        stops = self._bad_rows.most_in_block == 1
        return TextBlockReader(request.sources, start, block_bytes, buffers, request.stdin, request.note, stops)

    def _settle(
        self,
        parsed: ParsedBlock,
        position: ScanPosition,
        reader: Any,
        pool: ThreadPoolExecutor,
        spare: "SimpleQueue[RowBuffers]",
    ) -> Future[SpoolFile]:
        """Does what must happen in the order of the blocks, and leaves the rest to the pool."""
        block, rows = parsed.block, parsed.rows
        path = self._request.sources[block.after.source].path
        offenders = self._bad_rows.take(parsed.bad, parsed.num_bad, parsed.bad_text, path, position.line)
        reader.release(block)
        if position.row + rows >= 1 << 40:
            raise DataError("more than a million million rows; prepare the sources in parts")
        new_keys, unseen = self._categories.assign(pool, *parsed.categories)
        header = SpoolHeader(
            first_row=position.row,
            rows=rows,
            first_line=position.line,
            lines=parsed.lines,
            bad_lines=parsed.num_bad,
            offenders=offenders,
            quarantined=self._bad_rows.kept_bytes,
            after=block.after,
            ends_source=block.ends_source,
            counts=Counts(
                tuple(parsed.missing.tolist()),
                tuple(parsed.clamped.tolist()),
                unseen,
                cut=tuple(bag.cut for bag in parsed.bags.values()),
            ),
            new_keys=tuple(keys.size for keys in new_keys),
        )
        file = spool_path(self._spool, position.file)
        position.file += 1
        position.row += rows
        position.line = 0 if block.ends_source else position.line + parsed.lines
        position.source = block.after
        return pool.submit(self._write, file, header, parsed, new_keys, spare)

    def _write(
        self,
        path: Path,
        header: SpoolHeader,
        parsed: ParsedBlock,
        new_keys: list[NDArray[Any]],
        spare: "SimpleQueue[RowBuffers]",
    ) -> SpoolFile:
        rows, buffers = header.rows, parsed.buffers
        bounds = np.zeros(NUM_BINS + 1, np.int64)
        place_rows(self._seed, header.first_row, bounds, buffers.places[:rows])
        values = file_values(parsed.bags, buffers.places[:rows], buffers.ids)
        dense, records = buffers.dense[:rows], buffers.records[:rows]
        to_records(buffers.places[:rows], Columns(buffers.label, dense.view(np.uint32), buffers.ids), records)
        statistics = np.zeros((3, buffers.num_dense))
        dense_statistics(dense, statistics)
        sums, low, high = (tuple(row.tolist()) for row in statistics)
        counts = replace(header.counts, dense_sum=sums, dense_min=low if rows else (), dense_max=high if rows else ())
        spooled = write_spool_file(path, replace(header, counts=counts), bounds, records, values, new_keys)
        spare.put(buffers)
        return spooled


def are_parquet(sources: Sequence[RawFile], remedy: str) -> bool:
    """Tells whether all sources are Parquet, or none; DataError with a remedy where only some are."""
    kinds = {source.kind == "parquet" for source in sources}
    if len(kinds) > 1:
        raise DataError(f"Parquet and other files together; {remedy}")
    return kinds.pop()


def new_parser(layout: Layout, bad_rows: BadRows, is_parquet: bool) -> Any:
    """Makes the parser of text, or that of columns."""
    if not is_parquet:
        return TextParser(layout, bad_rows.most_in_block, bad_rows.keeps_text)
    from dqrm_cpu.data.prepare.parse.columns import ColumnParser  # with kernels that text does not need

    return ColumnParser(layout, bad_rows.keeps_text)


def new_parquet_reader(sources: Sequence[RawFile], start: SourcePosition, block_bytes: int, layout: Layout) -> Any:
    """Makes the reader of Parquet, which needs an optional package."""
    from dqrm_cpu.data.prepare.sources.parquet import ParquetReader

    return ParquetReader(sources, start, block_bytes, layout)


@functools.cache
def import_kernels() -> None:
    """Calls the smallest kernel: numba then imports some eighty modules, a tenth of a second in which no row moves.

    Without collecting garbage: what is imported stays, and going through all of it again and again costs as much.
    """
    was_enabled, interval_s = gc.isenabled(), sys.getswitchinterval()
    gc.disable()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    try:
        count_lines(np.zeros(PADDING, np.uint8), 0)
        gc.freeze()
    finally:
        sys.setswitchinterval(interval_s)
        if was_enabled:
            gc.enable()
