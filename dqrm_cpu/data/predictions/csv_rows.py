"""Keys and probabilities to lines of CSV (RFC 4180, lines end with a line feed).

A probability has nine significant digits, which give back its float32 exactly.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.data.prepare.parse.key_cells import KeyCells
from dqrm_cpu.kernels.jit.compile import inlined, thorough_kernel
from dqrm_cpu.kernels.jit.memory import byte_at, long_at

_NUMBER_BYTES = 20
_COMMA, _QUOTE, _NEWLINE, _RETURN = 44, 34, 10, 13
_ZERO, _POINT, _MINUS, _EXPONENT = 48, 46, 45, 101
_DIGITS = 9
_LEAST, _MOST = 10 ** (_DIGITS - 1), 10**_DIGITS
_FIXED_FROM = -4  # smaller powers of ten are written with an exponent


def csv_header(names: Sequence[str]) -> bytes:
    """Returns the line of the columns' names."""
    return (",".join(map(_quoted, names)) + "\n").encode()


def csv_lines(keys: Sequence[KeyCells], probabilities: NDArray[np.float32]) -> memoryview:
    """Returns a line for each row: its keys, then its probability."""
    rows = probabilities.size
    most = rows * (_NUMBER_BYTES + 1) + sum(2 * int(column.offsets[rows]) + 3 * rows for column in keys)
    out = np.empty(most, np.uint8)
    columns = np.array([[c.text.ctypes.data, c.offsets.ctypes.data] for c in keys], np.int64).reshape(len(keys), 2)
    return out[: int(format_rows(columns, probabilities, out))].data


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"' if any(sign in name for sign in ',"\n\r') else name


@inlined
def write_cell(text: int, first: int, end: int, out: Any, at: int) -> Any:
    """Writes a cell from `at` on, in quotes where it has to be; returns the place behind it."""
    quotes = False
    for place in range(first, end):
        byte = byte_at(text, place)
        quotes = quotes or byte in (_COMMA, _QUOTE, _NEWLINE, _RETURN)
    if quotes:
        out[at] = _QUOTE
        at += 1
    for place in range(first, end):
        byte = byte_at(text, place)
        if byte == _QUOTE:
            out[at] = _QUOTE
            at += 1
        out[at] = byte
        at += 1
    if quotes:
        out[at] = _QUOTE
        at += 1
    return at


@inlined
def write_digits(digits: int, count: int, out: Any, at: int) -> Any:
    """Writes the lowest decimal digits of a number, `count` of them."""
    for k in range(count):
        out[at + count - 1 - k] = _ZERO + digits % 10
        digits //= 10
    return at + count


@inlined
def write_probability(value: float, out: Any, at: int) -> Any:
    """Writes a number from 0 to 1 from `at` on; returns the place behind it."""
    if value == 0.0:
        out[at] = _ZERO
        return at + 1
    power = np.int64(np.floor(np.log10(value)))
    digits = np.int64(np.rint(value * 10.0 ** np.float64(_DIGITS - 1 - power)))
    if digits < _LEAST or digits >= _MOST:  # the logarithm was rounded, or the digits were
        power += np.int64(1) if digits >= _MOST else np.int64(-1)
        digits = np.int64(np.rint(value * 10.0 ** np.float64(_DIGITS - 1 - power)))
    if power < _FIXED_FROM or power >= 0:
        out[at] = _ZERO + digits // _LEAST
        out[at + 1] = _POINT
        at = write_digits(digits % _LEAST, _DIGITS - 1, out, at + 2)
        if power < 0:
            out[at], out[at + 1] = _EXPONENT, _MINUS
            at = write_digits(-power, 2, out, at + 2)
        return at
    out[at], out[at + 1] = _ZERO, _POINT
    at = write_digits(0, -power - 1, out, at + 2)
    return write_digits(digits, _DIGITS, out, at)


@thorough_kernel
def format_rows(columns: NDArray[np.int64], probabilities: NDArray[np.float32], out: NDArray[np.uint8]) -> Any:
    """Writes lines; columns int64[K, 2] has the addresses of the columns' text and offsets. Returns the bytes."""
    at = np.int64(0)
    for row in range(probabilities.shape[0]):
        for k in range(columns.shape[0]):
            text, offsets = columns[k, 0], columns[k, 1]
            at = write_cell(text, long_at(offsets, row), long_at(offsets, row + 1), out, at)
            out[at] = _COMMA
            at += 1
        at = write_probability(np.float64(probabilities[row]), out, at)
        out[at] = _NEWLINE
        at += 1
    return at
