"""Where predictions go: a CSV or Parquet file that appears whole or not at all, a stream of CSV, or memory."""

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.base.files import replacing
from dqrm_cpu.data.predictions.csv_rows import csv_header, csv_lines
from dqrm_cpu.data.prepare.parse.key_cells import KeyCells
from dqrm_cpu.errors import ConfigError, DataError

PROBABILITY = "probability"
"""The name of the last column."""

_CSV, _PARQUET = ".csv", ".parquet"
_GROUP_ROWS = 1 << 18
"""Rows of a row group: a block of rows alone would make groups so small that readers become slow."""


class PredictionWriter(Protocol):
    """Takes predictions in the order of their rows."""

    def write(self, keys: Sequence[KeyCells], probabilities: NDArray[np.float32]) -> None:
        """Writes the rows of a block."""

    def finish(self) -> None:
        """Writes what is left; called once, behind the last rows."""

    def discard(self) -> None:
        """Gives up after an error; what was written is not wanted any more."""


class CsvWriter:
    """Writes lines of CSV below a header."""

    def __init__(self, stream: BinaryIO, names: Sequence[str]) -> None:
        self._stream = stream
        self._header = csv_header((*names, PROBABILITY))

    def write(self, keys: Sequence[KeyCells], probabilities: NDArray[np.float32]) -> None:
        """Writes the rows of a block."""
        self._stream.write(self._header)
        self._header = b""
        self._stream.write(csv_lines(keys, probabilities))

    def finish(self) -> None:
        """Hands on what the stream still holds."""
        self._stream.flush()

    def discard(self) -> None:
        """Does nothing: what was written to a stream cannot be taken back."""


class ParquetWriter:
    """Writes row groups; keys out of Parquet keep their type, others are text."""

    def __init__(self, stream: BinaryIO, names: Sequence[str]) -> None:
        self._stream, self._names = stream, (*names, PROBABILITY)
        self._arrow, self._parquet = _arrow(), importlib.import_module("pyarrow.parquet")
        self._writer: Any = None
        self._waiting: list[Any] = []
        self._rows = 0

    def write(self, keys: Sequence[KeyCells], probabilities: NDArray[np.float32]) -> None:
        """Takes the rows of a block; writes those of a row group once they are together."""
        columns = [*(self._column(cells, probabilities.size) for cells in keys), self._arrow.array(probabilities)]
        table = self._arrow.table(columns, names=list(self._names))
        if self._writer is None:
            self._writer = self._parquet.ParquetWriter(self._stream, table.schema)
        if table.schema != self._writer.schema:
            raise DataError(
                f"the keys of a file have other types than those before ({_types(table.schema)} after "
                f"{_types(self._writer.schema)}); write CSV, or score the files apart"
            )
        self._waiting.append(table)
        self._rows += table.num_rows
        if self._rows >= _GROUP_ROWS:
            self._write_group()

    def finish(self) -> None:
        """Writes the last row group and the footer."""
        if self._rows:
            self._write_group()
        if self._writer is not None:
            self._writer.close()

    def discard(self) -> None:
        """Closes Arrow's writer while its file is open: it would complain when it is collected."""
        if self._writer is not None:
            with contextlib.suppress(Exception):
                self._writer.close()

    def _write_group(self) -> None:
        self._writer.write_table(self._arrow.concat_tables(self._waiting).combine_chunks())
        self._waiting, self._rows = [], 0

    def _column(self, cells: KeyCells, rows: int) -> Any:
        if cells.values is not None:
            return cells.values
        buffers = [None, self._arrow.py_buffer(cells.offsets), self._arrow.py_buffer(cells.text)]
        column = self._arrow.Array.from_buffers(self._arrow.large_string(), rows, buffers)
        try:
            column.validate(full=True)
        except self._arrow.ArrowInvalid as error:
            raise DataError(f"a key is no text in UTF-8, and Parquet has no other ({error}); write CSV") from None
        return column


class ArrayWriter:
    """Keeps predictions in memory."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._keys: list[Sequence[KeyCells]] = []
        self._probabilities: list[NDArray[np.float32]] = []

    def begin(self, names: Sequence[str]) -> None:
        """Takes the names of the keys."""
        self._names = tuple(names)

    def write(self, keys: Sequence[KeyCells], probabilities: NDArray[np.float32]) -> None:
        """Keeps the rows of a block."""
        self._keys.append(keys)
        self._probabilities.append(probabilities)

    def finish(self) -> None:
        """Does nothing: the rows are there."""

    def discard(self) -> None:
        """Does nothing: whoever asked gets an error instead."""

    def columns(self) -> dict[str, NDArray[Any]]:
        """Returns the columns by name, the probabilities last; keys out of Parquet keep their type, others are text."""
        keys = {name: np.concatenate([_cells(block[k]) for block in self._keys]) for k, name in enumerate(self._names)}
        return {**keys, PROBABILITY: np.concatenate(self._probabilities)}


def _cells(column: KeyCells) -> NDArray[Any]:
    if column.values is not None:
        values: NDArray[Any] = column.values.to_numpy(zero_copy_only=False)
        return values
    texts = [column.cell(row).decode("utf-8", "replace") for row in range(column.offsets.size - 1)]
    return np.array(texts, dtype=object)


def require_writable(out: Path, overwrite: bool) -> None:
    """Raises ConfigError where predictions cannot go to `out`: before anything is read."""
    if out.suffix not in (_CSV, _PARQUET):
        raise ConfigError(f"{out} is to hold predictions, as {_CSV} or {_PARQUET}; give it one of these suffixes")
    if not out.parent.is_dir():
        raise ConfigError(f"{out}: there is no folder {out.parent}; make it, or give another place")
    if out.is_dir():
        raise ConfigError(f"{out} is a folder; give the name of a file")
    if out.exists() and not overwrite:
        raise ConfigError(f"{out} exists; give another name, or --overwrite to replace it")
    if out.suffix == _PARQUET:
        _arrow()


@contextlib.contextmanager
def predictions_to(out: Path | BinaryIO | ArrayWriter, names: Sequence[str]) -> Iterator[PredictionWriter]:
    """Opens a writer of predictions with keys of these names. A file takes its name once all of it is there."""
    with contextlib.ExitStack() as stack:
        writer: PredictionWriter
        if isinstance(out, ArrayWriter):
            out.begin(names)
            writer = out
        else:
            stream = stack.enter_context(replacing(out, DataError)) if isinstance(out, Path) else out
            is_parquet = isinstance(out, Path) and out.suffix == _PARQUET
            writer = ParquetWriter(stream, names) if is_parquet else CsvWriter(stream, names)
        try:
            yield writer
            writer.finish()
        except BaseException:
            writer.discard()
            raise


def _types(schema: Any) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)


def _arrow() -> Any:
    try:
        return importlib.import_module("pyarrow")
    except ImportError:
        raise DataError("Parquet needs pyarrow: pip install 'dqrm-cpu[parquet]', or write CSV") from None
