"""Parquet files as batches of columns, read with pyarrow, which is imported only here and only when there are any."""

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from isal import isal_zlib

from dqrm_cpu.data.prepare.row_layout import FieldRole, Layout
from dqrm_cpu.data.prepare.sources.raw_file import RawFile, SourcePosition, open_source, require_unchanged
from dqrm_cpu.data.prepare.sources.remote import is_url, open_remote
from dqrm_cpu.errors import DataError

CELL_BYTES = 5
"""What a cell counts as in offsets and estimates: about what it takes as text."""

_PIECE_BYTES = 4 << 20


@dataclass(frozen=True)
class ColumnBlock:
    """Neighbouring rows of one file: the columns that a layout keeps, by the numbers of their fields."""

    columns: dict[int, Any]  # pyarrow.Array
    rows: int
    before: SourcePosition
    after: SourcePosition
    ends_source: bool


class ParquetReader:
    """Iterates over blocks of the sources from a place on, in the order of their rows."""

    def __init__(self, sources: Sequence[RawFile], start: SourcePosition, block_bytes: int, layout: Layout) -> None:
        self._sources, self._start, self._layout = sources, start, layout
        self._row_bytes = CELL_BYTES * len(layout.fields)
        self._block_rows = max(1, block_bytes // self._row_bytes)
        self._names = column_names(sources[0].path)

    def __enter__(self) -> "ParquetReader":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> Iterator[ColumnBlock]:
        for number in range(self._start.source, len(self._sources)):
            offset = self._start.offset if number == self._start.source else 0
            yield from self._blocks(number, offset // self._row_bytes)

    def release(self, block: ColumnBlock) -> None:
        """Does nothing: Arrow's memory goes with the block."""

    def _blocks(self, number: int, row: int) -> Iterator[ColumnBlock]:
        path = self._sources[number].path
        file = open_parquet(path)
        if list(file.schema_arrow.names) != self._names:
            raise DataError(f"{path} has other columns than {self._sources[0].path}; prepare them apart")
        total, before = file.metadata.num_rows, SourcePosition(number, row * self._row_bytes)
        for batch in self._batches(path, file, row):
            row += batch.num_rows
            if row > total:
                raise _unreadable(path, ValueError(f"it has more rows than the {total:,} of its footer"))
            ends = row == total
            if ends:
                require_unchanged(self._sources[number])
            after = SourcePosition(number, row * self._row_bytes, _crc32(path) if ends else 0)
            yield self._block(batch, before, after, ends)
            before = after
        if row < total:
            raise _unreadable(path, ValueError(f"it has {row:,} rows, and its footer says {total:,}"))

    def _batches(self, path: str, file: Any, row: int) -> Iterator[Any]:
        """Reads batches from a row on; an empty one where there is none."""
        fields = enumerate(self._layout.fields)
        wanted = [self._names[k] for k, field in fields if field.role != FieldRole.IGNORED]
        groups, skipped = list(range(file.metadata.num_row_groups)), row
        while groups and file.metadata.row_group(groups[0]).num_rows <= skipped:
            skipped -= file.metadata.row_group(groups.pop(0)).num_rows
        is_reached = False
        try:
            for batch in file.iter_batches(self._block_rows, row_groups=groups, columns=wanted):
                rest = batch.slice(min(skipped, batch.num_rows))
                skipped -= batch.num_rows - rest.num_rows
                if rest.num_rows:
                    is_reached = True
                    yield rest
        except _errors() as error:
            raise _unreadable(path, error) from error
        if not is_reached:
            yield importlib.import_module("pyarrow").RecordBatch.from_pylist([], file.schema_arrow)

    def _block(self, batch: Any, before: SourcePosition, after: SourcePosition, ends: bool) -> ColumnBlock:
        fields = enumerate(self._layout.fields)
        columns = {k: batch.column(self._names[k]) for k, field in fields if field.role != FieldRole.IGNORED}
        return ColumnBlock(columns, batch.num_rows, before, after, ends)


def column_names(path: str) -> list[str]:
    """Lists the columns of a file in their order."""
    return list(open_parquet(path).schema_arrow.names)


def estimate_bytes(path: str) -> int:
    """Estimates the size of a file in the unit of offsets."""
    file = open_parquet(path)
    return int(file.metadata.num_rows) * len(file.schema_arrow.names) * CELL_BYTES


def open_parquet(path: str) -> Any:
    """Opens a pyarrow.parquet.ParquetFile; DataError where pyarrow is missing or the file is damaged."""
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise DataError(f"{path} is Parquet, which needs pyarrow: pip install 'dqrm-cpu[parquet]'") from None
    try:
        # Without a mapping: the system ends a process that touches one whose file became shorter.
        source = open_remote(path) if is_url(path) else path
        file = parquet.ParquetFile(source, memory_map=False, page_checksum_verification=True)
        _ = file.schema_arrow  # a type that Arrow does not have
        return file
    except _errors() as error:
        raise _unreadable(path, error) from error


def _errors() -> tuple[type[Exception], ...]:
    """Names the exceptions that Arrow raises about a file."""
    arrow: Any = importlib.import_module("pyarrow")
    return (OSError, ValueError, KeyError, TypeError, MemoryError, OverflowError, arrow.ArrowException)


def _unreadable(path: str, error: Exception) -> DataError:
    reason = str(error).partition("\n")[0].rstrip(".")
    return DataError(f"{path} cannot be read as Parquet: {reason}; is it damaged, or still being written?")


def _crc32(path: str) -> int:
    """Digests the file as it is stored."""
    crc32 = 0
    with open_source(path) as file:
        while piece := file.read(_PIECE_BYTES):
            crc32 = isal_zlib.crc32(piece, crc32)
    return crc32
