"""Rows in memory as a Parquet file: DataFrames of pandas and polars, Arrow tables, columns by name, lists of rows."""

import contextlib
import importlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dqrm_cpu.errors import DataError, DqrmError

_FILE = "rows.parquet"


def are_paths(rows: object) -> bool:
    """Says whether somebody names a file or folder, or several, rather than giving the rows themselves."""
    names = rows if isinstance(rows, list | tuple) and rows else [rows]
    return all(isinstance(name, str | os.PathLike) for name in names)


@contextlib.contextmanager
def files_of(rows: Any) -> Iterator[tuple[str, ...]]:
    """Names the files of rows; those in memory are written to one, which is there while entered."""
    if are_paths(rows):
        yield tuple(map(os.fspath, rows if isinstance(rows, list | tuple) else [rows]))
    else:
        with parquet_of(arrow_table(rows)) as path:
            yield (str(path),)


def arrow_table(frame: Any, what: str = "the given table") -> Any:
    """Converts rows to a pyarrow.Table; DataError where they are none, or pyarrow is missing."""
    arrow = _arrow()
    try:
        if isinstance(frame, arrow.Table):
            return frame
        if isinstance(frame, arrow.RecordBatch):
            return arrow.Table.from_batches([frame])
        if type(frame).__module__.partition(".")[0] == "pandas" and hasattr(frame, "columns"):
            return arrow.Table.from_pandas(frame, preserve_index=False)
        if hasattr(frame, "__arrow_c_stream__") and hasattr(frame, "columns"):
            return arrow.table(frame)
        if isinstance(frame, Mapping):
            return arrow.table(dict(frame))
        if isinstance(frame, list | tuple) and frame and all(isinstance(row, Mapping) for row in frame):
            return arrow.Table.from_pylist([dict(row) for row in frame])
    except (arrow.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{what} cannot be read as columns: {str(error).partition(chr(10))[0]}; a column holds values of one kind"
        ) from error
    raise DataError(
        f"a {type(frame).__name__} holds no rows; give a DataFrame of pandas or polars, a pyarrow.Table, a dict of "
        "columns, a list of dicts, or the path of a file"
    )


@contextlib.contextmanager
def parquet_of(table: Any, what: str = "the given table") -> Iterator[Path]:
    """Writes a pyarrow.Table to a file that is there while entered; errors name `what` instead of the file."""
    with tempfile.TemporaryDirectory(prefix="dqrm-cpu-") as folder:
        path = Path(folder).resolve() / _FILE
        _write(table, path, what)
        try:
            yield path
        except DqrmError as error:
            error.args = (str(error).replace(str(path), what),)
            raise


def _write(table: Any, path: Path, what: str) -> None:
    parquet: Any = importlib.import_module("pyarrow.parquet")
    try:
        # Without Arrow's own schema: texts come back as plain texts, however they were held in memory.
        parquet.write_table(table, path, store_schema=False, compression="none")
    except OSError as error:
        raise DataError(f"{what} could not be written to {path.parent}: {error}; set TMPDIR to another disk") from error
    except _arrow().ArrowException as error:
        raise DataError(f"{what} cannot be written as Parquet: {error}") from error


def _arrow() -> Any:
    try:
        return importlib.import_module("pyarrow")
    except ImportError:
        raise DataError("rows in memory need pyarrow: pip install 'dqrm-cpu[parquet]'") from None
