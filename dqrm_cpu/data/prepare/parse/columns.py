"""Blocks of Parquet columns to rows: the labels, logarithms and keys that the text of the same values would give."""

import re
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.data.prepare.bad_rows import MOST_SHOWN, SHOWN_BYTES, BadLine, Mistake
from dqrm_cpu.data.prepare.buffers import PADDING, RowBuffers
from dqrm_cpu.data.prepare.parse.bags import BagColumn, bags_of_cells, bags_of_parts
from dqrm_cpu.data.prepare.parse.fields import NEWLINE
from dqrm_cpu.data.prepare.parse.key_cells import KeyCells, arrow_text, cells_of_values
from dqrm_cpu.data.prepare.parse.parser import ParsedBlock
from dqrm_cpu.data.prepare.parse.rows import LOG_TABLE
from dqrm_cpu.data.prepare.parse.times import LARGEST_TIME, time_cell
from dqrm_cpu.data.prepare.parse.values import (
    LARGEST_FLOAT32,
    MISSING,
    NO_THRESHOLD,
    VALUE,
    category_key,
    decimal_cell,
    hash_cell,
    integer_cell,
    label_cell,
    threshold_of,
    weight_cell,
)
from dqrm_cpu.data.prepare.row_layout import CATEGORY_ROLES, DENSE_ROLES, Field, FieldRole, Layout, raw_numbers
from dqrm_cpu.data.prepare.sources.parquet import ColumnBlock
from dqrm_cpu.errors import DataError
from dqrm_cpu.kernels.jit.compile import thorough_kernel

_NUMBER_TYPES = ("int", "float", "double", "halffloat", "bool", "decimal")
_TEXT_TYPES = ("string", "binary", "null")
_LIST_TYPE = re.compile(r"(large_|fixed_size_)?list<")
_INTEGER, _DECIMAL = int(FieldRole.INTEGER), int(FieldRole.DECIMAL)
_HEX, _TEXT, _TIME = int(FieldRole.HEX), int(FieldRole.TEXT), int(FieldRole.TIME)
_WEIGHT = int(FieldRole.WEIGHT)
_LARGEST_INT32, _LARGEST_HASH, _LARGEST_DECIMAL = 2**31 - 1, 2**32 - 1, 1e300


class _Values(NamedTuple):
    """The values of one column, which cells are missing, and which are no value of its role."""

    values: NDArray[Any]
    missing: NDArray[np.bool_]
    mistakes: NDArray[np.int64]  # 0 where all is well


class ColumnParser:
    """Turns blocks of one layout into rows; any number of threads may call it."""

    def __init__(self, layout: Layout, keeps_text: bool) -> None:
        """`keeps_text` asks for the text of all bad rows."""
        self._layout, self._keeps_text, self._raw = layout, keeps_text, raw_numbers(layout)

    def parse(self, block: ColumnBlock, buffers: RowBuffers) -> ParsedBlock:
        """Parses a block: its rows go into the buffers, those with a mistake are left out."""
        buffers.reserve(block.rows)
        fields = self._layout.fields
        threshold = threshold_of(self._layout)
        columns = {
            k: _read(fields[k], column, threshold)
            for k, column in block.columns.items()
            if fields[k].role not in (FieldRole.KEY, FieldRole.BAG)
        }
        mistakes = np.zeros(block.rows, np.int64)
        places = np.zeros(block.rows, np.int64)
        for k, column in columns.items():
            first = (mistakes == 0) & (column.mistakes != 0)
            mistakes[first], places[first] = column.mistakes[first], k
        kept = np.flatnonzero(mistakes == 0)
        missing = np.zeros(buffers.num_dense + buffers.num_tables, np.int64)
        clamped = np.zeros(buffers.num_dense, np.int64)
        numbers = self._layout.column_numbers()
        for k, column in columns.items():
            role, at, values, gone = fields[k].role, numbers[k], column.values[kept], column.missing[kept]
            if role == FieldRole.LABEL:
                buffers.label[: kept.size] = values
            elif role in (*DENSE_ROLES, FieldRole.WEIGHT):
                missing[at] = np.count_nonzero(gone)
                if self._raw[at]:
                    known = np.clip(values, -LARGEST_FLOAT32, LARGEST_FLOAT32)
                    buffers.dense[: kept.size, at] = np.where(gone, np.nan, known)
                else:
                    clamped[at] = np.count_nonzero(values < 0)
                    logarithms(np.maximum(values, 0.0), LOG_TABLE, buffers.dense, at)
            elif role == FieldRole.TIME:
                high = values.astype(np.float32)
                buffers.dense[: kept.size, at], buffers.dense[: kept.size, at + 1] = high, values - high
            elif role in CATEGORY_ROLES:
                missing[buffers.num_dense + at] = np.count_nonzero(gone)
                buffers.keys[at, : kept.size] = values
        bags = {}
        for t, field in zip(self._layout.bag_tables, self._layout.bags, strict=True):
            bags[t] = _read_bags(field, block.columns[fields.index(field)], kept)
            missing[buffers.num_dense + t] = bags[t].num_empty
        wrong = np.flatnonzero(mistakes).tolist()
        bad = tuple(
            BadLine(row, int(places[row]), int(mistakes[row]), _row_text(block, row)[:SHOWN_BYTES])
            for row in wrong[:MOST_SHOWN]
        )
        text = b"".join(_row_text(block, row) + b"\n" for row in wrong) if self._keeps_text else b""
        return ParsedBlock(
            block, kept.size, block.rows, bad, len(wrong), text, missing, clamped, buffers,
            np.array(wrong, np.int64), self._key_cells(block, kept), bags,
        )  # fmt: skip

    def _key_cells(self, block: ColumnBlock, rows: NDArray[np.int64]) -> tuple[KeyCells, ...]:
        """Returns the cells of these rows in the columns that are carried along."""
        fields, cells = self._layout.fields, []
        for k, column in block.columns.items():
            if fields[k].name and fields[k].name in self._layout.keys:
                values = column if rows.size == len(column) else column.take(rows)
                cells.append(cells_of_values(values, fields[k].name))
        return tuple(cells)


def _read_bags(field: Field, column: Any, rows: NDArray[np.int64]) -> BagColumn:
    """Reads the values of some rows: those of a list, or of a text with separators."""
    if rows.size < len(column):
        column = column.take(rows)
    kind = str(column.type)
    if _LIST_TYPE.match(kind):
        sizes = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
        bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        text, parts = _places(column.flatten(), field.name)
        return bags_of_parts(text, parts, bounds, field.limit)
    if not field.separator:
        raise DataError(
            f'column {field.name} holds {kind}, no lists: give what stands between its values as in {field.name} = "|" '
            "in [multi] of the schema"
        )
    text, cells = _places(column, field.name)
    return bags_of_cells(text, cells, field.separator, field.limit)


def _places(column: Any, name: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Returns the texts of a column, and where each begins in it, and its bytes: int64[n, 2]."""
    if str(column.type).startswith("dictionary"):
        column = column.dictionary_decode()
    text, offsets = _strings(column, name)
    return text, np.stack([offsets[:-1], np.diff(offsets) - 1], axis=1)


def _row_text(block: ColumnBlock, row: int) -> bytes:
    cells = ("" if cell is None else str(cell) for cell in (column[row].as_py() for column in block.columns.values()))
    return ",".join(cells).encode("utf-8", "backslashreplace")


def _read(field: Field, column: Any, threshold: float) -> _Values:
    """Reads one column by its role; texts are read as the parser of lines reads them."""
    role, name, kind = field.role, field.name or "the label", str(column.type)
    if kind.startswith("dictionary"):
        column = column.dictionary_decode()
        kind = str(column.type)
    if _LIST_TYPE.match(kind):
        raise DataError(
            f"column {name} holds {kind}, where one value is expected; name it among the categories and in [multi] of "
            "the schema, whose columns have several"
        )
    is_number = kind.lstrip("u").startswith(_NUMBER_TYPES)
    if role == FieldRole.TEXT or (role == FieldRole.HEX and not is_number):
        return _cells(role, column, name, threshold)
    if role == FieldRole.TIME and kind.startswith(("timestamp", "date")):
        return _checked(role, *_dates(column, kind), threshold)
    if not is_number and role != FieldRole.HEX:
        if not kind.removeprefix("large_").startswith(_TEXT_TYPES):
            raise DataError(
                f"column {name} holds {kind}, where numbers are expected; name it among the categories instead"
            )
        return _cells(role, column, name, threshold)
    values, missing = _numbers(column, kind)
    if role == FieldRole.HEX:
        return _numbers_as_hashes(values, missing)
    return _checked(role, values, missing, threshold)


def _checked(role: FieldRole, values: NDArray[np.float64], missing: NDArray[np.bool_], threshold: float) -> _Values:
    """Finds the numbers f64[n] that are none of their role."""
    if role == FieldRole.LABEL:
        if threshold != NO_THRESHOLD:
            wrong = np.where(missing, int(Mistake.EMPTY_LABEL), ~np.isfinite(values) * int(Mistake.BAD_LABEL))
            return _Values((values >= threshold).astype(np.float64), missing, wrong)
        number = ((values != 0) & (values != 1)) * int(Mistake.NUMBER_LABEL)
        wrong = np.where(np.isfinite(values), number, int(Mistake.BAD_LABEL))
        wrong = np.where(missing, int(Mistake.EMPTY_LABEL), wrong)
        return _Values(np.where(wrong != 0, 0, values), missing, wrong)
    if role == FieldRole.TIME:
        return _Values(values, missing, (missing | ~(np.abs(values) < LARGEST_TIME)) * int(Mistake.BAD_TIME))
    if role == FieldRole.WEIGHT:
        wrong = missing | ~((values >= 0) & (values < _LARGEST_DECIMAL))
        return _Values(np.abs(values), missing, wrong * int(Mistake.BAD_WEIGHT))
    if role == FieldRole.DECIMAL:
        wrong = ~(np.abs(values) < _LARGEST_DECIMAL)
        return _Values(values, missing, wrong * int(Mistake.BAD_DECIMAL))
    large = (values > _LARGEST_INT32) | (values < -_LARGEST_INT32 - 1)
    broken = values != np.rint(values)
    return _Values(values, missing, np.where(large, int(Mistake.LARGE_INTEGER), broken * int(Mistake.BAD_INTEGER)))


def _numbers(column: Any, kind: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Reads values, 0 where missing. NaN is what pandas writes for a missing number."""
    if kind == "bool":
        column = column.cast("int8")
    values = np.array(column.cast("float64", safe=False).fill_null(np.nan).to_numpy(zero_copy_only=False))
    missing = np.isnan(values)
    values[missing] = 0.0
    return values, missing


def _dates(column: Any, kind: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Reads dates and times of Parquet as seconds since 1970, 0 where missing."""
    per_second = {"s": 1, "ms": 1000, "us": 10**6, "ns": 10**9}
    counted = column.cast("int32").cast("int64") if kind.startswith("date32") else column.cast("int64")
    values, missing = _numbers(counted, "int64")
    if kind.startswith("timestamp"):
        return values / per_second[column.type.unit], missing
    return values * 86_400 if kind.startswith("date32") else values / 1000, missing


def _numbers_as_hashes(values: NDArray[np.float64], missing: NDArray[np.bool_]) -> _Values:
    """Takes whole numbers of 32 bits as the hashes themselves."""
    large = (values < 0) | (values > _LARGEST_HASH)
    wrong = np.where(large, int(Mistake.LONG_HEX), (values != np.rint(values)) * int(Mistake.BAD_HEX))
    return _Values(np.where(wrong != 0, 0, values).astype(np.uint64), missing, wrong)


def _cells(role: FieldRole, column: Any, name: str, threshold: float) -> _Values:
    """Reads a column of texts: keys of categories, numbers or labels."""
    text, offsets = _strings(column, name)
    count = offsets.size - 1
    keys, values, kinds = np.zeros(count, np.uint64), np.zeros(count), np.zeros(count, np.int64)
    read_cells(int(role), text.ctypes.data, offsets, threshold, keys, values, kinds)
    is_category = role in CATEGORY_ROLES
    return _Values(keys if is_category else values, kinds == MISSING, np.where(kinds < 0, -kinds, 0))


def _strings(column: Any, name: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Joins the texts of a column, a line feed behind each, padded, with where each begins: int64[n + 1]."""
    content, offsets = arrow_text(column, name)
    text = np.zeros(int(offsets[-1] - offsets[0]) + len(column) + PADDING, np.uint8)
    separate(content, offsets, text)
    return text, offsets - offsets[0] + np.arange(offsets.size)


@thorough_kernel
def separate(content: NDArray[np.uint8], offsets: NDArray[np.int64], text: NDArray[np.uint8]) -> None:
    """Copies the texts that begin at these offsets, a line feed behind each: readers stop where a cell ends."""
    written = 0
    for i in range(offsets.shape[0] - 1):
        for at in range(offsets[i], offsets[i + 1]):
            text[written] = content[at]
            written += 1
        text[written] = NEWLINE
        written += 1


@thorough_kernel
def read_cells(
    role: int,
    text: int,
    offsets: NDArray[np.int64],
    threshold: float,
    keys: NDArray[np.uint64],
    values: NDArray[np.float64],
    kinds: NDArray[np.int64],
) -> None:
    """Reads cells as keys or values; kinds says which are MISSING, VALUE or a negative mistake."""
    for i in range(kinds.shape[0]):
        at, length = offsets[i], offsets[i + 1] - offsets[i] - 1
        if role == _TEXT:
            keys[i] = category_key(text, at, length)
            kinds[i] = VALUE if keys[i] != np.uint64(0) else MISSING
        elif role == _HEX:
            keys[i], kinds[i] = hash_cell(text, at, length)
        elif role == _INTEGER:
            number, kinds[i] = integer_cell(text, at, length)
            values[i] = np.float64(number)
        elif role == _DECIMAL:
            values[i], kinds[i] = decimal_cell(text, at, length)
        elif role == _TIME:
            values[i], kinds[i] = time_cell(text, at, length)
        elif role == _WEIGHT:
            values[i], kinds[i] = weight_cell(text, at, length)
        else:
            label = label_cell(text, at, length, threshold)
            values[i], kinds[i] = np.float64(max(label, 0)), label if label < 0 else VALUE


@thorough_kernel
def logarithms(values: NDArray[np.float64], logs: NDArray[np.float32], dense: NDArray[np.float32], column: int) -> None:
    """Writes log(x + 1) as float32 into a column, from the table where the parser of text takes it from there."""
    for i in range(values.shape[0]):
        small = np.int64(values[i]) if values[i] < logs.shape[0] else np.int64(-1)
        if small >= 0 and np.float64(small) == values[i]:
            dense[i, column] = logs[small]
        else:
            dense[i, column] = np.float32(np.log(values[i] + 1.0))
