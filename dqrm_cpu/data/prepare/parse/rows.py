"""The compiled parser: lines of text to labels, logarithms and keys of categories.

Strict: a line that differs from the layout in anything becomes a `BadLines` entry and no row.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.data.prepare.bad_rows import Mistake
from dqrm_cpu.data.prepare.parse.fields import (
    CARRIAGE_RETURN,
    NEWLINE,
    read_decimal,
    read_hex,
    read_integer,
    text_length,
)
from dqrm_cpu.data.prepare.parse.times import time_cell
from dqrm_cpu.data.prepare.parse.values import (
    MISSING,
    VALUE,
    as_float32,
    category_key,
    decimal_cell,
    hash_cell,
    integer_cell,
    label_cell,
    weight_cell,
)
from dqrm_cpu.data.prepare.row_layout import LONGEST_LINE, STAYS, FieldRole
from dqrm_cpu.kernels.jit.compile import inlined, thorough_kernel
from dqrm_cpu.kernels.jit.memory import add_long, byte_at, float_at, long_at, set_float, set_int, set_long

_LABEL, _INTEGER, _DECIMAL = int(FieldRole.LABEL), int(FieldRole.INTEGER), int(FieldRole.DECIMAL)
_HEX, _TEXT, _KEY = int(FieldRole.HEX), int(FieldRole.TEXT), int(FieldRole.KEY)
_TIME, _WEIGHT = int(FieldRole.TIME), int(FieldRole.WEIGHT)
_TOO_FEW, _TOO_MANY = int(Mistake.TOO_FEW_FIELDS), int(Mistake.TOO_MANY_FIELDS)
_EMPTY = int(Mistake.EMPTY_LINE)
_LONG_LINE = int(Mistake.LONG_LINE)

_SOMETHING_ELSE = -99

LOG_TABLE = np.log(np.arange(1, 1 << 14, dtype=np.float64)).astype(np.float32)
"""log(x + 1) of small x: looking up is many times faster than the logarithm, and most numbers are small."""

_NUM_LOGS = LOG_TABLE.size


class RowArrays(NamedTuple):
    """The arrays that rows go to, as addresses: numba counts the references of arrays that a function passes on.

    The caller keeps the arrays alive and gives them room for as many rows as there are lines.
    """

    label: int  # uint32[n]
    dense: int  # f32[n, D] log(x + 1), 0 where missing or negative; or the values, NaN where missing
    keys: int  # uint32 or uint64 [T, stride]; 0 where missing
    missing: int  # int64[D + T] cells counted per column
    clamped: int  # int64[D] negative numbers
    increment: int  # int64[1] what a cell counts: 1, or -1 while the counts of a bad line are taken back
    key_cells: int  # int64[K, stride, 2]: where the cells of columns that are carried along begin, and their bytes
    runs: int  # int64[R, 4] of Runs
    raw: int  # uint8[D]: 1 where a dense column keeps its values
    logs: int  # f32[LOG_TABLE.size]
    num_runs: int
    num_dense: int
    stride: int
    wide_keys: int  # 1: uint64
    delimiter: int
    threshold: float  # of labels; NO_THRESHOLD where they are 0 or 1


class BadLines(NamedTuple):
    """The arrays in which lines that are no rows are noted, as many as fit."""

    start: NDArray[np.int64]  # index of the first byte
    line: NDArray[np.int64]  # number, from 0
    mistake: NDArray[np.int64]
    field: NDArray[np.int64]  # number, from 0


@inlined
def set_key(out: Any, column: int, row: int, key: Any) -> None:
    """Writes one key, 32 or 64 bits wide."""
    if out.wide_keys:
        set_long(out.keys, column * out.stride + row, key)
    else:
        set_int(out.keys, column * out.stride + row, key)


@inlined
def close(text: int, at: int, closing: int, delimiter: int) -> Any:
    """Steps over what ends a field; a negative mistake, or _SOMETHING_ELSE, where the field does not end there."""
    byte = byte_at(text, at)
    if byte == closing:
        return at + 1
    if closing != NEWLINE:
        return np.int64(-_TOO_FEW) if ends_line(text, at) else np.int64(_SOMETHING_ELSE)
    if byte == CARRIAGE_RETURN and byte_at(text, at + 1) == NEWLINE:
        return at + 2
    return np.int64(-_TOO_MANY) if byte == delimiter else np.int64(_SOMETHING_ELSE)


@inlined
def ends_line(text: int, at: int) -> Any:
    """Tells whether the line ends here."""
    byte = byte_at(text, at)
    return byte == NEWLINE or (byte == CARRIAGE_RETURN and byte_at(text, at + 1) == NEWLINE)


@inlined
def is_empty(text: int, at: int, delimiter: int) -> Any:
    """Tells whether the field is empty."""
    return byte_at(text, at) == delimiter or ends_line(text, at)


@inlined
def count_missing(out: Any, column: int) -> None:
    """Counts a cell of this column, dense columns first, as missing."""
    add_long(out.missing, column, long_at(out.increment, 0))


@inlined
def hex_run(text: int, at: int, count: int, first: int, row: int, out: Any, closing: int) -> Any:
    """Reads hexadecimal hashes. Returns (where the next field starts or a negative mistake, field)."""
    for k in range(count):
        if is_empty(text, at, out.delimiter):
            set_key(out, first + k, row, np.uint64(0))
            count_missing(out, out.num_dense + first + k)
        else:
            value, length = read_hex(text, at)
            if length < 0 or not is_empty(text, at + length, out.delimiter):
                length = text_length(text, at, out.delimiter)
                value, kind = hash_cell(text, at, length)
                if kind < 0:
                    return kind, k
                if kind == MISSING:
                    count_missing(out, out.num_dense + first + k)
            set_key(out, first + k, row, value)
            at += length
        at = close(text, at, closing, out.delimiter)
        if at < 0:
            return at, k
    return at, 0


@inlined
def text_run(text: int, at: int, count: int, first: int, row: int, out: Any, closing: int) -> Any:
    """Reads categories that are text; returns as `hex_run` does."""
    for k in range(count):
        length = text_length(text, at, out.delimiter)
        key = category_key(text, at, length)
        set_key(out, first + k, row, key)
        if key == np.uint64(0):
            count_missing(out, out.num_dense + first + k)
        at = close(text, at + length, closing, out.delimiter)
        if at < 0:
            return at, k
    return at, 0


@inlined
def key_run(text: int, at: int, count: int, first: int, row: int, out: Any, closing: int) -> Any:
    """Notes where the cells of columns that are carried along stand; returns as `hex_run` does."""
    for k in range(count):
        length = text_length(text, at, out.delimiter)
        place = 2 * ((first + k) * out.stride + row)
        set_long(out.key_cells, place, np.uint64(at))
        set_long(out.key_cells, place + 1, np.uint64(length))
        if closing == STAYS:
            return at, k
        at = close(text, at + length, closing, out.delimiter)
        if at < 0:
            return at, k
    return at, 0


@inlined
def set_number(out: Any, row: int, column: int, value: float) -> None:
    """Writes a number as it is, or its logarithm, with a negative one counted and taken as 0."""
    place = row * out.num_dense + column
    if byte_at(out.raw, column) != 0:
        set_float(out.dense, place, as_float32(value))
        return
    if value < 0.0:
        add_long(out.clamped, column, long_at(out.increment, 0))
        value = 0.0
    set_float(out.dense, place, np.float32(np.log(value + 1.0)))


@inlined
def set_missing(out: Any, row: int, column: int) -> None:
    """Writes and counts a number that is missing."""
    count_missing(out, column)
    gone = np.float32(np.nan) if byte_at(out.raw, column) != 0 else np.float32(0.0)
    set_float(out.dense, row * out.num_dense + column, gone)


@inlined
def integer_run(text: int, at: int, count: int, first: int, row: int, out: Any, closing: int) -> Any:
    """Reads whole numbers as their logarithms; returns as `hex_run` does."""
    for k in range(count):
        if is_empty(text, at, out.delimiter):
            set_missing(out, row, first + k)
        else:
            kind = np.int64(VALUE)
            value, length = read_integer(text, at, out.delimiter)
            if length < 0 or not is_empty(text, at + length, out.delimiter):
                length = text_length(text, at, out.delimiter)
                value, kind = integer_cell(text, at, length)
                if kind < 0:
                    return kind, k
            if kind == MISSING:
                set_missing(out, row, first + k)
            elif 0 <= value < _NUM_LOGS and byte_at(out.raw, first + k) == 0:
                set_float(out.dense, row * out.num_dense + first + k, float_at(out.logs, value))
            else:
                set_number(out, row, first + k, np.float64(value))
            at += length
        at = close(text, at, closing, out.delimiter)
        if at < 0:
            return at, k
    return at, 0


@inlined
def decimal_run(text: int, at: int, count: int, first: int, row: int, out: Any, closing: int) -> Any:
    """Reads any numbers as their logarithms; returns as `hex_run` does."""
    for k in range(count):
        if is_empty(text, at, out.delimiter):
            set_missing(out, row, first + k)
        else:
            kind = np.int64(VALUE)
            value, length = read_decimal(text, at)
            if length < 0 or not is_empty(text, at + length, out.delimiter):
                length = text_length(text, at, out.delimiter)
                value, kind = decimal_cell(text, at, length)
                if kind < 0:
                    return kind, k
            if kind == MISSING:
                set_missing(out, row, first + k)
            else:
                set_number(out, row, first + k, value)
            at += length
        at = close(text, at, closing, out.delimiter)
        if at < 0:
            return at, k
    return at, 0


@inlined
def time_run(text: int, at: int, count: int, first: int, row: int, out: Any, closing: int) -> Any:
    """Reads times as two floats each, whose sum they are; returns as `hex_run` does."""
    for k in range(count):
        length = text_length(text, at, out.delimiter)
        time, kind = time_cell(text, at, length)
        if kind < 0:
            return kind, k
        high = np.float32(time)
        set_float(out.dense, row * out.num_dense + first + 2 * k, high)
        set_float(out.dense, row * out.num_dense + first + 2 * k + 1, np.float32(time - np.float64(high)))
        at = close(text, at + length, closing, out.delimiter)
        if at < 0:
            return at, k
    return at, 0


@inlined
def other_run(text: int, at: int, count: int, first: int, row: int, out: Any, closing: int, role: int) -> Any:
    """Reads the label or the weight, or skips fields of no interest; returns as `hex_run` does."""
    for k in range(count):
        length = text_length(text, at, out.delimiter)
        if role == _LABEL:
            label = label_cell(text, at, length, out.threshold)
            if label < 0:
                return label, k
            set_int(out.label, row, np.uint64(label))
        elif role == _WEIGHT:
            weight, kind = weight_cell(text, at, length)
            if kind < 0:
                return kind, k
            set_float(out.dense, row * out.num_dense + first + k, as_float32(weight))
        at = close(text, at + length, closing, out.delimiter)
        if at < 0:
            return at, k
    return at, 0


@inlined
def parse_line(text: int, at: int, row: int, out: Any) -> Any:
    """Reads one line. Returns (where the next one starts or a negative mistake, number of the field)."""
    if ends_line(text, at) and out.num_runs > 1:
        return np.int64(-_EMPTY), np.int64(0)
    fields = np.int64(0)
    for r in range(out.num_runs):
        role, count = long_at(out.runs, 4 * r), long_at(out.runs, 4 * r + 1)
        first, closing = long_at(out.runs, 4 * r + 2), long_at(out.runs, 4 * r + 3)
        if role == _HEX:
            at, k = hex_run(text, at, count, first, row, out, closing)
        elif role == _INTEGER:
            at, k = integer_run(text, at, count, first, row, out, closing)
        elif role == _TEXT:
            at, k = text_run(text, at, count, first, row, out, closing)
        elif role == _DECIMAL:
            at, k = decimal_run(text, at, count, first, row, out, closing)
        elif role == _KEY:
            at, k = key_run(text, at, count, first, row, out, closing)
        elif role == _TIME:
            at, k = time_run(text, at, count, first, row, out, closing)
        else:
            at, k = other_run(text, at, count, first, row, out, closing, role)
        if at < 0:
            return at, fields + k
        fields += count if closing != STAYS else 0
    return at, fields


@thorough_kernel
def parse_lines(text: int, end: int, place: Any, out: RowArrays, bad: BadLines) -> None:
    """Parses lines from place = int64[at, rows, lines, bad lines] up to `end`; stops when no bad line fits any more.

    The text ends with a newline.
    """
    at, row, line, num_bad = place[0], place[1], place[2], place[3]
    increment = np.int64(1)
    while at < end and num_bad < bad.start.shape[0]:
        following, field = parse_line(text, at, row, out)
        if following - at - 1 > LONGEST_LINE:
            following, field = np.int64(-_LONG_LINE), np.int64(0)
        if following >= 0:
            row += 1
            at = following
        elif increment == 1:
            increment = np.int64(-1)  # once more, to take the counts back
            add_long(out.increment, 0, -2)
            continue
        else:
            increment = np.int64(1)
            add_long(out.increment, 0, 2)
            bad.start[num_bad], bad.line[num_bad] = at, line
            began = at
            while byte_at(text, at) != NEWLINE:
                at += 1
            if at - began > LONGEST_LINE:
                following, field = np.int64(-_LONG_LINE), np.int64(0)
            bad.mistake[num_bad], bad.field[num_bad] = -following, field
            num_bad += 1
            at += 1
        line += 1
    place[0], place[1], place[2], place[3] = at, row, line, num_bad
