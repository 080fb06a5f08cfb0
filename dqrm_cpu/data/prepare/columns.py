"""Columns of Parquet to the same labels, logarithms and keys as the text of the same values would give."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.data.prepare.compiled import kernel
from dqrm_cpu.data.prepare.fields import hash_text, hex_digit
from dqrm_cpu.data.prepare.layout import CATEGORY_ROLES, DENSE_ROLES, Layout, Role
from dqrm_cpu.data.prepare.mistakes import Mistake
from dqrm_cpu.data.prepare.parquet import ColumnBlock
from dqrm_cpu.data.prepare.parse import MOST_SHOWN, SHOWN_BYTES, BadLine, ParsedBlock, RowBuffers
from dqrm_cpu.data.prepare.rows import LOG_TABLE
from dqrm_cpu.data.prepare.words import PADDING, byte_at
from dqrm_cpu.errors import DataError

_LARGEST_INT32, _LARGEST_HASH, _LARGEST_DECIMAL = 2**31 - 1, 2**32 - 1, 1e300


class _Values(NamedTuple):
    """One column: what it holds, where nothing stands, where that is no value of its role."""

    values: NDArray[Any]
    missing: NDArray[np.bool_]
    mistakes: NDArray[np.int64]  # 0 where all is well


class ColumnParser:
    """Turns blocks of one layout into rows; any number of threads may call it."""

    def __init__(self, layout: Layout, keeps_text: bool) -> None:
        """`keeps_text` asks for the text of all bad rows."""
        self._layout, self._keeps_text = layout, keeps_text

    def parse(self, block: ColumnBlock, buffers: RowBuffers) -> ParsedBlock:
        """Rows into the buffers; a row with a mistake is left out."""
        buffers.reserve(block.rows)
        fields = self._layout.fields
        found = {k: _read(fields[k].role, column, fields[k].name) for k, column in block.columns.items()}
        mistakes = np.zeros(block.rows, np.int64)
        places = np.zeros(block.rows, np.int64)
        for k, column in found.items():
            first = (mistakes == 0) & (column.mistakes != 0)
            mistakes[first], places[first] = column.mistakes[first], k
        kept = np.flatnonzero(mistakes == 0)
        missing = np.zeros(buffers.num_dense + buffers.num_tables, np.int64)
        clamped = np.zeros(buffers.num_dense, np.int64)
        dense = categorical = 0
        for k, column in found.items():
            role, values, gone = fields[k].role, column.values[kept], column.missing[kept]
            if role == Role.LABEL:
                buffers.label[: kept.size] = values
            elif role in DENSE_ROLES:
                missing[dense], clamped[dense] = np.count_nonzero(gone), np.count_nonzero(values < 0)
                logarithms(np.maximum(values, 0.0), LOG_TABLE, buffers.dense, dense)
                dense += 1
            elif role in CATEGORY_ROLES:
                missing[buffers.num_dense + categorical] = np.count_nonzero(gone)
                buffers.keys[categorical, : kept.size] = values
                categorical += 1
        wrong = np.flatnonzero(mistakes).tolist()
        bad = tuple(
            BadLine(row, int(places[row]), int(mistakes[row]), _row_text(block, row)[:SHOWN_BYTES])
            for row in wrong[:MOST_SHOWN]
        )
        text = b"".join(_row_text(block, row) + b"\n" for row in wrong) if self._keeps_text else b""
        return ParsedBlock(block, kept.size, block.rows, bad, len(wrong), text, missing, clamped, buffers)


def _row_text(block: ColumnBlock, row: int) -> bytes:
    cells = ("" if cell is None else str(cell) for cell in (column[row].as_py() for column in block.columns.values()))
    return ",".join(cells).encode("utf-8", "backslashreplace")


def _read(role: Role, column: Any, name: str) -> _Values:
    if role == Role.TEXT:
        return _texts(column, name)
    if role == Role.HEX:
        return _numbers_as_hashes(column) if str(column.type).lstrip("u").startswith("int") else _hashes(column, name)
    values, missing = _numbers(column, name or "the label")
    if role == Role.LABEL:
        wrong = missing | ((values != 0) & (values != 1))
        return _Values(np.where(wrong, 0, values), missing, wrong * int(Mistake.BAD_LABEL))
    if role == Role.DECIMAL:
        wrong = ~(np.abs(values) < _LARGEST_DECIMAL)
        return _Values(values, missing, wrong * int(Mistake.BAD_DECIMAL))
    large = (values > _LARGEST_INT32) | (values < -_LARGEST_INT32 - 1)
    broken = values != np.rint(values)
    return _Values(values, missing, np.where(large, int(Mistake.LARGE_INTEGER), broken * int(Mistake.BAD_INTEGER)))


def _numbers(column: Any, name: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Values, 0 where missing. NaN is what pandas writes for a missing number."""
    kind = str(column.type)
    if not kind.lstrip("u").startswith(("int", "float", "double", "halffloat", "bool", "decimal")):
        raise DataError(f"column {name} holds {kind}, where numbers are expected; name it among the categories instead")
    if kind == "bool":
        column = column.cast("int8")
    values = np.array(column.cast("float64", safe=False).fill_null(np.nan).to_numpy(zero_copy_only=False))
    missing = np.isnan(values)
    values[missing] = 0.0
    return values, missing


def _strings(column: Any, name: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """All text one after another, padded, and where each begins: int64[n + 1]. Empty where missing."""
    try:
        column = column.cast("large_string").fill_null("")
    except (ValueError, NotImplementedError) as error:
        raise DataError(f"column {name} holds {column.type}, which cannot be read as text ({error})") from None
    _, starts, content = column.buffers()
    offsets = np.zeros(1, np.int64) if starts is None else np.frombuffer(starts, np.int64)
    offsets = offsets[column.offset : column.offset + len(column) + 1]
    text = np.zeros(int(offsets[-1] - offsets[0]) + PADDING, np.uint8)
    if content is not None:
        text[: text.size - PADDING] = np.frombuffer(content, np.uint8)[offsets[0] : offsets[-1]]
    return text, offsets - offsets[0]


def _texts(column: Any, name: str) -> _Values:
    text, offsets = _strings(column, name)
    keys = np.zeros(offsets.size - 1, np.uint64)
    hash_texts(text.ctypes.data, offsets, keys)
    return _Values(keys, np.diff(offsets) == 0, np.zeros(keys.size, np.int64))


def _hashes(column: Any, name: str) -> _Values:
    text, offsets = _strings(column, name)
    keys, mistakes = np.zeros(offsets.size - 1, np.uint64), np.zeros(offsets.size - 1, np.int64)
    read_hashes(text.ctypes.data, offsets, keys, mistakes, int(Mistake.BAD_HEX), int(Mistake.LONG_HEX))
    return _Values(keys, np.diff(offsets) == 0, mistakes)


def _numbers_as_hashes(column: Any) -> _Values:
    """Numbers of 32 bits are the hashes themselves."""
    values = column.fill_null(0).to_numpy(zero_copy_only=False)
    wrong = (values < 0) | (values > _LARGEST_HASH)
    missing = column.is_null().to_numpy(zero_copy_only=False)
    return _Values(np.where(wrong, 0, values).astype(np.uint64), missing, wrong * int(Mistake.LONG_HEX))


@kernel
def hash_texts(text: int, offsets: NDArray[np.int64], keys: NDArray[np.uint64]) -> None:
    """The keys of texts, 0 of an empty one; `text` is an address, padded at its end."""
    for i in range(keys.shape[0]):
        length = offsets[i + 1] - offsets[i]
        if length > 0:
            keys[i] = hash_text(text, offsets[i], length)


@kernel
def read_hashes(
    text: int, offsets: NDArray[np.int64], keys: NDArray[np.uint64], mistakes: NDArray[np.int64], bad: int, long: int
) -> None:
    """Hexadecimal digits to keys, 0 for none."""
    for i in range(keys.shape[0]):
        value = np.uint64(0)
        for at in range(offsets[i], offsets[i + 1]):
            digit = hex_digit(byte_at(text, at))
            if digit < 0:
                mistakes[i] = bad
                break
            if at - offsets[i] == 8:
                mistakes[i] = long
                break
            value = (value << np.uint64(4)) | np.uint64(digit)
        keys[i] = value


@kernel
def logarithms(values: NDArray[np.float64], logs: NDArray[np.float32], dense: NDArray[np.float32], column: int) -> None:
    """log(x + 1) as float32 into a column, from the table where text of the same number would be."""
    for i in range(values.shape[0]):
        small = np.int64(values[i]) if values[i] < logs.shape[0] else np.int64(-1)
        if small >= 0 and np.float64(small) == values[i]:
            dense[i, column] = logs[small]
        else:
            dense[i, column] = np.float32(np.log(values[i] + 1.0))
