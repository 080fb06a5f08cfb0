"""The compiled parser: lines of text to labels, logarithms and keys of categories.

Strict: a line that differs from the layout in anything becomes a `BadLines` entry and no row.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.data.prepare.compiled import inlined, kernel
from dqrm_cpu.data.prepare.fields import (
    CARRIAGE_RETURN,
    NEWLINE,
    TOO_LARGE,
    hash_text,
    hex_digit,
    read_decimal,
    read_hex,
    read_integer,
    text_length,
)
from dqrm_cpu.data.prepare.layout import Role
from dqrm_cpu.data.prepare.mistakes import LONGEST_LINE, Mistake
from dqrm_cpu.data.prepare.words import (
    add_long,
    byte_at,
    float_at,
    long_at,
    set_float,
    set_long_word,
    set_word,
)

_LABEL, _INTEGER, _DECIMAL = int(Role.LABEL), int(Role.INTEGER), int(Role.DECIMAL)
_HEX, _TEXT = int(Role.HEX), int(Role.TEXT)
_TOO_FEW, _TOO_MANY = int(Mistake.TOO_FEW_FIELDS), int(Mistake.TOO_MANY_FIELDS)
_EMPTY, _BAD_LABEL = int(Mistake.EMPTY_LINE), int(Mistake.BAD_LABEL)
_BAD_INTEGER, _LARGE_INTEGER = int(Mistake.BAD_INTEGER), int(Mistake.LARGE_INTEGER)
_BAD_HEX, _LONG_HEX, _BAD_DECIMAL = int(Mistake.BAD_HEX), int(Mistake.LONG_HEX), int(Mistake.BAD_DECIMAL)

_LONG_LINE = int(Mistake.LONG_LINE)

_SOMETHING_ELSE = -99

LOG_TABLE = np.log(np.arange(1, 1 << 14, dtype=np.float64)).astype(np.float32)
"""log(x + 1) of small x: looking up is many times faster than the logarithm, and most numbers are small."""

_NUM_LOGS = LOG_TABLE.size


class RowArrays(NamedTuple):
    """Where rows go, as addresses: numba counts the references of every array that a function passes on.

    The caller keeps the arrays alive and gives them place for as many rows as there are lines.
    """

    label: int  # uint32[n]
    dense: int  # f32[n, D] log(x + 1); 0 where missing or negative
    keys: int  # uint32 or uint64 [T, stride]; 0 where missing
    missing: int  # int64[D + T] cells counted per column
    clamped: int  # int64[D] negative numbers
    step: int  # int64[1] what a cell counts: 1, or -1 while the counts of a bad line are taken back
    runs: int  # int64[R, 4] of Runs
    logs: int  # f32[LOG_TABLE.size]
    num_runs: int
    num_dense: int
    stride: int
    wide_keys: int  # 1: uint64
    delimiter: int


class BadLines(NamedTuple):
    """Where lines that are no rows are noted: as many as fit."""

    start: NDArray[np.int64]  # index of the first byte
    line: NDArray[np.int64]  # number, from 0
    mistake: NDArray[np.int64]
    field: NDArray[np.int64]  # number, from 0


@inlined
def set_key(out: Any, column: int, row: int, key: Any) -> None:
    """Writes one key, 32 or 64 bits wide."""
    if out.wide_keys:
        set_long_word(out.keys, column * out.stride + row, key)
    else:
        set_word(out.keys, column * out.stride + row, key)


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
    """Whether the line ends here."""
    byte = byte_at(text, at)
    return byte == NEWLINE or (byte == CARRIAGE_RETURN and byte_at(text, at + 1) == NEWLINE)


@inlined
def is_empty(text: int, at: int, delimiter: int) -> Any:
    """Whether nothing stands between the field's ends."""
    return byte_at(text, at) == delimiter or ends_line(text, at)


@inlined
def hex_run(text: int, at: int, count: int, first: int, row: int, out: Any, closing: int) -> Any:
    """Categories as hexadecimal hashes. Returns (where the next field starts or a negative mistake, field)."""
    for k in range(count):
        start = at
        if is_empty(text, at, out.delimiter):
            set_key(out, first + k, row, np.uint64(0))
            add_long(out.missing, out.num_dense + first + k, long_at(out.step, 0))
        else:
            value, length = read_hex(text, at)
            if length < 0:
                return np.int64(-_LONG_HEX if length == TOO_LARGE else -_BAD_HEX), k
            set_key(out, first + k, row, value)
            at += length
        at = close(text, at, closing, out.delimiter)
        if at == _SOMETHING_ELSE:
            return np.int64(-_LONG_HEX if hex_digit(byte_at(text, start + 8)) >= 0 else -_BAD_HEX), k
        if at < 0:
            return at, k
    return at, 0


@inlined
def text_run(text: int, at: int, count: int, first: int, row: int, out: Any, closing: int) -> Any:
    """Categories as text."""
    for k in range(count):
        length = text_length(text, at, out.delimiter)
        if length == 0:
            set_key(out, first + k, row, np.uint64(0))
            add_long(out.missing, out.num_dense + first + k, long_at(out.step, 0))
        else:
            set_key(out, first + k, row, hash_text(text, at, length))
        at = close(text, at + length, closing, out.delimiter)
        if at < 0:
            return at, k
    return at, 0


@inlined
def logarithm(logs: int, value: int) -> Any:
    """log(value + 1) as float32."""
    return float_at(logs, value) if value < _NUM_LOGS else np.float32(np.log(np.float64(value) + 1.0))


@inlined
def integer_run(text: int, at: int, count: int, first: int, row: int, out: Any, closing: int) -> Any:
    """Whole numbers to their logarithms."""
    for k in range(count):
        if is_empty(text, at, out.delimiter):
            set_float(out.dense, row * out.num_dense + first + k, np.float32(0))
            add_long(out.missing, first + k, long_at(out.step, 0))
        else:
            value, length = read_integer(text, at, out.delimiter)
            if length < 0:
                return np.int64(-_LARGE_INTEGER if length == TOO_LARGE else -_BAD_INTEGER), k
            if value < 0:
                add_long(out.clamped, first + k, long_at(out.step, 0))
                value = np.int64(0)
            set_float(out.dense, row * out.num_dense + first + k, logarithm(out.logs, value))
            at += length
        at = close(text, at, closing, out.delimiter)
        if at < 0:
            return (np.int64(-_BAD_INTEGER) if at == _SOMETHING_ELSE else at), k
    return at, 0


@inlined
def decimal_run(text: int, at: int, count: int, first: int, row: int, out: Any, closing: int) -> Any:
    """Any numbers to their logarithms."""
    for k in range(count):
        value = 0.0
        if is_empty(text, at, out.delimiter):
            add_long(out.missing, first + k, long_at(out.step, 0))
        else:
            value, length = read_decimal(text, at)
            if length < 0:
                return np.int64(-_BAD_DECIMAL), k
            if value < 0.0:
                add_long(out.clamped, first + k, long_at(out.step, 0))
                value = 0.0
            at += length
        set_float(out.dense, row * out.num_dense + first + k, np.float32(np.log(value + 1.0)))
        at = close(text, at, closing, out.delimiter)
        if at < 0:
            return (np.int64(-_BAD_DECIMAL) if at == _SOMETHING_ELSE else at), k
    return at, 0


@inlined
def other_run(text: int, at: int, count: int, role: int, row: int, out: Any, closing: int) -> Any:
    """The label, or fields of no interest."""
    for k in range(count):
        if role == _LABEL:
            digit = byte_at(text, at) - 48
            if digit != 0 and digit != 1:
                return np.int64(-_BAD_LABEL), k
            set_word(out.label, row, np.uint64(digit))
            at += 1
        else:
            at += text_length(text, at, out.delimiter)
        at = close(text, at, closing, out.delimiter)
        if at < 0:
            return (np.int64(-_BAD_LABEL) if at == _SOMETHING_ELSE else at), k
    return at, 0


@inlined
def parse_line(text: int, at: int, row: int, out: Any) -> Any:
    """One line. Returns (where the next one starts or a negative mistake, number of the field)."""
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
        else:
            at, k = other_run(text, at, count, role, row, out, closing)
        if at < 0:
            return at, fields + k
        fields += count
    return at, fields


@kernel
def parse_lines(text: int, end: int, place: Any, out: RowArrays, bad: BadLines) -> None:
    """Lines from place = int64[at, rows, lines, bad lines] up to `end`; stops early when no bad line fits any more.

    The text ends with a newline.
    """
    at, row, line, num_bad = place[0], place[1], place[2], place[3]
    step = np.int64(1)
    while at < end and num_bad < bad.start.shape[0]:
        following, field = parse_line(text, at, row, out)
        if following - at - 1 > LONGEST_LINE:
            following, field = np.int64(-_LONG_LINE), np.int64(0)
        if following >= 0:
            row += 1
            at = following
        elif step == 1:
            step = np.int64(-1)  # once more, to take the counts back
            add_long(out.step, 0, -2)
            continue
        else:
            step = np.int64(1)
            add_long(out.step, 0, 2)
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


@kernel
def count_lines(text: NDArray[np.uint8], end: int) -> int:
    """Newlines before `end`."""
    count = 0
    for k in range(end):
        count += text[k] == 10
    return count


@kernel
def line_starts(text: NDArray[np.uint8], lines: NDArray[np.int64], starts: NDArray[np.int64], place: Any) -> None:
    """Where the lines of these rising numbers, from 0, begin; place = int64[at, line] says where to search from."""
    at, line = place[0], place[1]
    for k in range(lines.shape[0]):
        while line < lines[k]:
            while text[at] != 10:
                at += 1
            at += 1
            line += 1
        starts[k] = at
    place[0], place[1] = at, line


@kernel
def copy_lines(text: NDArray[np.uint8], starts: NDArray[np.int64], out: NDArray[np.uint8]) -> int:
    """The lines that begin here, each with its line feed, one that is too long cut; returns their bytes."""
    written = 0
    for k in range(starts.shape[0]):
        at = starts[k]
        while text[at] != 10 and at - starts[k] <= LONGEST_LINE:
            out[written] = text[at]
            written += 1
            at += 1
        out[written] = 10
        written += 1
    return written
