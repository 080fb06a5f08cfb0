"""First pass: every source once, in order, from text to steps of the spool.

Blocks are parsed in parallel, ids are assigned block after block, and finished blocks are written while later ones are
parsed: the result is the same for any number of workers.
"""

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from dqrm_cpu.data.prepare.bad_rows import BadRows
from dqrm_cpu.data.prepare.blocks import BlockReader, Place, text_buffer_bytes
from dqrm_cpu.data.prepare.categories import Categories
from dqrm_cpu.data.prepare.estimate import num_row_buffers, num_text_buffers, rows_bytes
from dqrm_cpu.data.prepare.memory import Arena
from dqrm_cpu.data.prepare.order import NUM_BINS, Columns, place_rows, to_records
from dqrm_cpu.data.prepare.parse import ParsedBlock, Parser, RowBuffers
from dqrm_cpu.data.prepare.request import Request
from dqrm_cpu.data.prepare.spool import Counts, Offender, Step, StepHeader, step_path, write_step
from dqrm_cpu.data.prepare.start import start_kernels
from dqrm_cpu.data.prepare.statistics import dense_statistics
from dqrm_cpu.errors import DataError


@dataclass
class Position:
    """Where the next block begins."""

    step: int = 0
    row: int = 0
    line: int = 0  # in the source
    place: Place = field(default_factory=Place)


@dataclass(frozen=True)
class _Ordered:
    """A block whose place among the others is settled."""

    position: Position
    parsed: ParsedBlock
    offenders: tuple[Offender, ...]
    bad_count: int
    kept_bytes: int
    unseen: tuple[int, ...]


class Scanner:
    """Reads what is left of the sources."""

    def __init__(self, request: Request, spool: Path, categories: Categories, bad_rows: BadRows, arena: Arena) -> None:
        self._request, self._spool, self._arena = request, spool, arena
        self._categories, self._bad_rows = categories, bad_rows
        self._is_parquet = request.sources[0].kind == "parquet"
        if any((source.kind == "parquet") != self._is_parquet for source in request.sources):
            raise DataError("Parquet and other files together; prepare them apart, the second with --vocabulary DIR")
        self._parser = self._new_parser()
        self._seed = np.uint64(request.settings.seed)

    def scan(self, position: Position, block_bytes: int) -> Generator[Step, None, None]:
        """Steps in order, from a position on, each once it is written."""
        workers, layout = self._request.means.workers, self._request.settings.layout
        spare: SimpleQueue[RowBuffers] = SimpleQueue()
        for _ in range(num_row_buffers(workers)):
            spare.put(RowBuffers(layout, self._arena.part(rows_bytes(layout, block_bytes))))
        reader = self._reader(position.place, block_bytes, num_text_buffers(workers))
        with ThreadPoolExecutor(workers, "dqrm-prepare") as pool, reader:
            start_kernels()  # while the first blocks are read
            parsing: deque[Future[ParsedBlock]] = deque()
            writing: deque[Future[Step]] = deque()
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

    def _new_parser(self) -> Any:
        layout = self._request.settings.layout
        if not self._is_parquet:
            return Parser(layout, self._bad_rows.most_in_block, self._bad_rows.keeps_text)
        from dqrm_cpu.data.prepare.columns import ColumnParser  # with kernels that text does not need

        return ColumnParser(layout, self._bad_rows.keeps_text)

    def _reader(self, place: Place, block_bytes: int, num_buffers: int) -> Any:
        request = self._request
        if not self._is_parquet:
            shape, byte = (text_buffer_bytes(block_bytes),), np.dtype(np.uint8)
            buffers = [self._arena.take(shape, byte) for _ in range(num_buffers)]
            stops = self._bad_rows.most_in_block == 1
            return BlockReader(request.sources, place, block_bytes, buffers, request.stdin, request.note, stops)
        from dqrm_cpu.data.prepare.parquet import ParquetReader

        return ParquetReader(request.sources, place, block_bytes, request.settings.layout)

    def _settle(
        self,
        parsed: ParsedBlock,
        position: Position,
        reader: Any,
        pool: ThreadPoolExecutor,
        spare: "SimpleQueue[RowBuffers]",
    ) -> Future[Step]:
        """What must happen in the order of the blocks; the rest is left to the pool."""
        path = self._request.sources[parsed.block.after.source].path
        offenders = self._bad_rows.take(parsed, path, position.line)
        reader.give_back(parsed.block)
        buffers, rows = parsed.buffers, parsed.rows
        if position.row + rows >= 1 << 40:
            raise DataError("more than a million million rows; prepare the sources in parts")
        new_keys, unseen = self._categories.assign(pool, buffers.keys[:, :rows], buffers.ids[:, :rows])
        ordered = _Ordered(
            replace(position),
            parsed, offenders, parsed.num_bad, self._bad_rows.kept_bytes, unseen,
        )  # fmt: skip
        position.step += 1
        position.row += rows
        position.line = 0 if parsed.block.ends_source else position.line + parsed.lines
        position.place = parsed.block.after
        return pool.submit(self._write, ordered, new_keys, spare)

    def _write(
        self,
        ordered: _Ordered,
        new_keys: "list[np.ndarray[tuple[int], np.dtype[np.generic]]]",
        spare: "SimpleQueue[RowBuffers]",
    ) -> Step:
        buffers, rows = ordered.parsed.buffers, ordered.parsed.rows
        bounds = np.zeros(NUM_BINS + 1, np.int64)
        place_rows(self._seed, ordered.position.row, bounds, buffers.places[:rows])
        dense, records = buffers.dense[:rows], buffers.records[:rows]
        to_records(buffers.places[:rows], Columns(buffers.label, dense.view(np.uint32), buffers.ids), records)
        extremes = np.zeros((3, buffers.num_dense))
        dense_statistics(dense, extremes)
        header = _header(ordered, extremes, tuple(keys.size for keys in new_keys))
        step = write_step(step_path(self._spool, ordered.position.step), header, bounds, records, new_keys)
        spare.put(buffers)
        return step


def _header(
    ordered: _Ordered, extremes: "np.ndarray[tuple[int, int], np.dtype[np.float64]]", new_keys: tuple[int, ...]
) -> StepHeader:
    parsed, position = ordered.parsed, ordered.position
    some = parsed.rows > 0
    counts = Counts(
        missing=tuple(parsed.missing.tolist()),
        clamped=tuple(parsed.clamped.tolist()),
        unseen=ordered.unseen,
        dense_sum=tuple(extremes[0].tolist()),
        dense_min=tuple(extremes[1].tolist()) if some else (),
        dense_max=tuple(extremes[2].tolist()) if some else (),
    )
    return StepHeader(
        first_row=position.row,
        rows=parsed.rows,
        first_line=position.line,
        lines=parsed.lines,
        bad_lines=ordered.bad_count,
        offenders=ordered.offenders,
        quarantined=ordered.kept_bytes,
        after=parsed.block.after,
        ends_source=parsed.block.ends_source,
        counts=counts,
        new_keys=new_keys,
    )
