"""The first rows of a raw file as texts, column by column, with how the file is written."""

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from dqrm_cpu.data.prepare.row_layout import LONGEST_LINE
from dqrm_cpu.data.prepare.sources.raw_file import RawFile
from dqrm_cpu.data.prepare.sources.text_stream import is_damage, open_raw
from dqrm_cpu.errors import DataError

SAMPLE_ROWS = 20_000

_SAMPLE_BYTES = 64 << 20
_DELIMITERS = "\t,;|"
_BOM = b"\xef\xbb\xbf"
_NUMBER = re.compile(r"-?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]{1,3})?")
_LARGEST_NUMBER = 1e300
_ANSWERS = ("true", "false", "yes", "no", "nan", "null")
BETWEEN_ELEMENTS = "\x1f"
"""Between the elements of a list in the text of its cell."""

_LIST = re.compile(r"(large_|fixed_size_)?list<")
_PLAIN_TYPES = re.compile(r"u?int|float|double|halffloat|bool|decimal|(large_)?(string|binary)|date|timestamp|null")


@dataclass(frozen=True)
class RowSample:
    """Rows of a raw file. `columns` has a text per row, empty where the value is missing; None for a structure."""

    names: tuple[str, ...]
    columns: tuple[list[str] | None, ...]
    is_whole: bool  # there are no other rows in the file
    delimiter: str = "\t"
    header: bool = False
    quotes: bool = False
    types: tuple[str, ...] = ()  # of the columns of Parquet

    @property
    def is_parquet(self) -> bool:
        """Says whether the sample was read from Parquet, whose columns have names of their own."""
        return bool(self.types)

    @property
    def num_rows(self) -> int:
        return max((len(column) for column in self.columns if column is not None), default=0)


def is_number(text: str) -> bool:
    """Tells whether a cell is a number that `decimals` may hold."""
    return _NUMBER.fullmatch(text) is not None and abs(float(text)) < _LARGEST_NUMBER


def read_sample(file: RawFile) -> RowSample:
    """Reads the first rows of a file; DataError where there are none, or nobody can say what stands between fields."""
    if file.kind == "stdin":
        raise DataError(
            "a schema is suggested from a file, which is read again later; standard input is read only once"
        )
    sample = _parquet_sample(file.path) if file.kind == "parquet" else _text_sample(file)
    if not sample.num_rows:
        raise DataError(f"{file.path} has no rows to suggest a schema from")
    return sample


def _parquet_sample(path: str) -> RowSample:
    from dqrm_cpu.data.prepare.sources.parquet import open_parquet  # needs an optional package

    file = open_parquet(path)
    batch = next(file.iter_batches(SAMPLE_ROWS), None)
    names, types = tuple(file.schema_arrow.names), tuple(map(str, file.schema_arrow.types))
    columns = [None if batch is None else _cells(batch.column(k), kind) for k, kind in enumerate(types)]
    return RowSample(names, tuple(columns), file.metadata.num_rows <= SAMPLE_ROWS, types=types)


def _cells(column: Any, kind: str) -> list[str] | None:
    if kind.startswith("dictionary"):
        column = column.dictionary_decode()
        kind = str(column.type)
    if _LIST.match(kind):
        inner = str(column.type.value_type)
        elements = None if _LIST.match(inner) else _cells(column.flatten(), inner)
        sizes = column.value_lengths().fill_null(0).to_pylist()
        left = iter(elements or [])
        return None if elements is None else [BETWEEN_ELEMENTS.join(islice(left, size)) for size in sizes]
    if not _PLAIN_TYPES.match(kind):
        return None
    cells = ("" if cell is None else cell for cell in column.to_pylist())
    return [cell.decode("utf-8", "replace") if isinstance(cell, bytes) else str(cell) for cell in cells]


def is_list(kind: str) -> bool:
    """Tells whether a type of Parquet is that of lists."""
    return _LIST.match(kind) is not None


def _text_sample(file: RawFile) -> RowSample:
    lines, is_whole = _first_lines(file)
    if not lines:
        raise DataError(f"{file.path} has no rows to suggest a schema from")
    delimiter, quotes = _delimiter_of(file.path, lines)
    rows = _split(lines, delimiter, quotes)
    width = len(rows[0])
    header = _is_header(rows)
    names = tuple(name.strip() for name in rows[0]) if header else tuple(f"c{k + 1}" for k in range(width))
    # Lines that are none of the layout's are bad rows, which the schema cannot help.
    body = [row for row in rows[header:] if len(row) == width]
    columns = tuple([row[k] for row in body] for k in range(width))
    return RowSample(names, columns, is_whole, delimiter, header, quotes)


def _first_lines(file: RawFile) -> tuple[list[str], bool]:
    """Reads the first lines of a file; True where these are all."""
    try:
        with open_raw(file, io.BytesIO(), lambda _: None) as stream:
            text = b""
            while text.count(b"\n") <= SAMPLE_ROWS and len(text) < _SAMPLE_BYTES and (piece := stream.read(1 << 20)):
                text += piece
            is_whole = not stream.read(1)
    except Exception as error:
        if not is_damage(error):
            raise
        raise DataError(f"{file.path} cannot be read: {error}; is it damaged, or still being written?") from error
    lines = text.removeprefix(_BOM).split(b"\n")
    if not is_whole or not lines[-1]:
        lines.pop()  # the last one is empty, or not whole
    if lines and len(lines[0]) > LONGEST_LINE:
        raise DataError(f"{file.path} begins with a line of more than {LONGEST_LINE:,} bytes; is it a text file?")
    is_whole = is_whole and len(lines) <= SAMPLE_ROWS + 1
    some = islice((line.removesuffix(b"\r") for line in lines), SAMPLE_ROWS + 1)
    return [line.decode("utf-8", "replace") for line in some], is_whole


def _delimiter_of(path: str, lines: Sequence[str]) -> tuple[str, bool]:
    """Finds what stands between fields: what splits most lines into as many fields as the first one has."""
    best: tuple[int, int, str] = (0, 0, "")
    some = lines[:1000]
    for delimiter in _DELIMITERS:
        rows = _split(some, delimiter, _has_quotes(some, delimiter))
        width = len(rows[0])
        best = max(best, (sum(len(row) == width for row in rows) if width > 1 else 0, width, delimiter))
    if 10 * best[0] < 9 * len(some):
        raise DataError(
            f"{path}: the lines have no fields with a tab, comma, semicolon or bar between them, as many in each; "
            "write the schema by hand"
        )
    return best[2], _has_quotes(lines, best[2])


def _has_quotes(lines: Sequence[str], delimiter: str) -> bool:
    """Tells whether fields stand in quotes: one begins with a quote and one ends with it."""
    opening, closing = f'{delimiter}"', f'"{delimiter}'
    return any((line.startswith('"') or opening in line) and (line.endswith('"') or closing in line) for line in lines)


def _split(lines: Sequence[str], delimiter: str, quotes: bool) -> list[list[str]]:
    if not quotes:
        return [line.split(delimiter) for line in lines]
    return [_unquoted(line, delimiter) for line in lines]


def _unquoted(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return [line]


def _is_header(rows: Sequence[Sequence[str]]) -> bool:
    """Tells whether the first line names the fields: all differ, and none is a number or an answer as labels are."""
    first = [cell.strip() for cell in rows[0]]
    is_row = any(not cell or is_number(cell) or cell.lower() in _ANSWERS for cell in first)
    return not is_row and max(Counter(first).values()) == 1
