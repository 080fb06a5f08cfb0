"""Cells as other programs write them: words for a missing value and for truth, whole numbers with a point, labels.

Lines of text and columns of Parquet both read their cells here, so that a value means the same in either. Each reader
gets an address, the index of a cell and its length in bytes; whatever is not the common case comes here, so that it
may take its time.
"""

import math
from typing import Any

import numpy as np

from dqrm_cpu.data.prepare.bad_rows import Mistake
from dqrm_cpu.data.prepare.parse.fields import (
    TOO_LARGE,
    hash_text,
    hash_word,
    read_any_integer,
    read_decimal,
    read_short_hex,
)
from dqrm_cpu.data.prepare.row_layout import Layout
from dqrm_cpu.kernels.jit.compile import inlined
from dqrm_cpu.kernels.jit.memory import byte_at, word_at

MISSING, VALUE = 0, 1

LARGEST_FLOAT32 = float(np.finfo(np.float32).max)

NO_THRESHOLD = -math.inf
"""The threshold of labels that are 0 or 1 already."""


def threshold_of(layout: Layout) -> float:
    """Returns the number from which on labels are clicks; NO_THRESHOLD where they are 0 or 1."""
    return NO_THRESHOLD if layout.positive is None else layout.positive


_BAD_LABEL, _NUMBER_LABEL, _EMPTY_LABEL = map(int, (Mistake.BAD_LABEL, Mistake.NUMBER_LABEL, Mistake.EMPTY_LABEL))
_BAD_INTEGER, _LARGE_INTEGER = int(Mistake.BAD_INTEGER), int(Mistake.LARGE_INTEGER)
_BAD_DECIMAL, _BAD_HEX, _LONG_HEX = int(Mistake.BAD_DECIMAL), int(Mistake.BAD_HEX), int(Mistake.LONG_HEX)
_BAD_WEIGHT = int(Mistake.BAD_WEIGHT)

_MINUS, _POINT, _ZERO, _NINE = 45, 46, 48, 57


def _word(text: str) -> np.uint64:
    return np.uint64(int.from_bytes(text.encode(), "little"))


_LOWER = np.uint64(0x2020202020202020)
_NAN, _NULL, _BACKSLASH_N = _word("nan"), _word("null"), _word("\\N")
_TRUE, _FALSE, _YES, _NO = _word("true"), _word("false"), _word("yes"), _word("no")
_T, _F, _Y, _N = _word("t"), _word("f"), _word("y"), _word("n")
_64, _EIGHT = np.uint64(64), np.uint64(8)


@inlined
def as_float32(value: float) -> Any:
    """Rounds a number, one that is too large to the largest there is."""
    return np.float32(min(max(value, -LARGEST_FLOAT32), LARGEST_FLOAT32))


@inlined
def first_bytes(text: int, at: int, length: int) -> Any:
    """Reads the 1 to 8 bytes of a cell as a word."""
    shift = _64 - _EIGHT * np.uint64(length)
    return (word_at(text, at) << shift) >> shift


@inlined
def in_lower_case(word: Any, length: int) -> Any:
    """Turns the letters of a word of 1 to 8 bytes into small ones."""
    return word | (_LOWER >> (_64 - _EIGHT * np.uint64(length)))


@inlined
def is_missing(text: int, at: int, length: int) -> Any:
    r"""Tells whether a cell has no value: it is empty, or NaN or null in any case, or \N."""
    if length == 0:
        return True
    if length > 4:
        return False
    word = first_bytes(text, at, length)
    lower = in_lower_case(word, length)
    return lower in (_NAN, _NULL) or word == _BACKSLASH_N


@inlined
def truth_of(text: int, at: int, length: int) -> Any:
    """Returns 1 for true and 0 for false, in any case; -1 for anything else."""
    if 4 <= length <= 5:
        lower = in_lower_case(first_bytes(text, at, length), length)
        if lower == _TRUE:
            return 1
        if lower == _FALSE:
            return 0
    return -1


@inlined
def answer_of(text: int, at: int, length: int) -> Any:
    """Returns 1 for true, yes, t and y, 0 for false, no, f and n, in any case; -1 for anything else."""
    if 1 <= length <= 3:
        lower = in_lower_case(first_bytes(text, at, length), length)
        if lower in (_YES, _Y, _T):
            return 1
        if lower in (_NO, _N, _F):
            return 0
    return truth_of(text, at, length)


@inlined
def integer_cell(text: int, at: int, length: int) -> Any:
    """Reads a whole number of 32 bits, as 47, 47.0, true or false: (number, VALUE, MISSING or a negative mistake)."""
    if is_missing(text, at, length):
        return np.int64(0), np.int64(MISSING)
    truth = truth_of(text, at, length)
    if truth >= 0:
        return np.int64(truth), np.int64(VALUE)
    value, taken = read_any_integer(text, at)
    if taken < 0:
        return np.int64(0), np.int64(-_LARGE_INTEGER if taken == TOO_LARGE else -_BAD_INTEGER)
    if byte_at(text, at + taken) == _POINT:
        taken += 1
        while byte_at(text, at + taken) == _ZERO:
            taken += 1
    return value, np.int64(VALUE if taken == length else -_BAD_INTEGER)


@inlined
def decimal_cell(text: int, at: int, length: int) -> Any:
    """Reads any number, or true or false: (number, VALUE, MISSING or a negative mistake)."""
    if is_missing(text, at, length):
        return 0.0, np.int64(MISSING)
    truth = truth_of(text, at, length)
    if truth >= 0:
        return np.float64(truth), np.int64(VALUE)
    value, taken = read_decimal(text, at)
    return value, np.int64(VALUE if taken == length else -_BAD_DECIMAL)


@inlined
def weight_cell(text: int, at: int, length: int) -> Any:
    """Reads a number from 0 on, which must not be missing: (number, VALUE or a negative mistake)."""
    value, kind = decimal_cell(text, at, length)
    is_weight = kind == VALUE and value >= 0.0
    return abs(value), np.int64(VALUE if is_weight else -_BAD_WEIGHT)


@inlined
def label_cell(text: int, at: int, length: int, threshold: float) -> Any:
    """Reads a label, 1 where it says yes or is a number from the threshold on: 0, 1 or a negative mistake.

    Without a threshold the number must be 0 or 1.
    """
    digit = byte_at(text, at) - _ZERO
    if length == 1 and 0 <= digit <= 1 and threshold == NO_THRESHOLD:
        return digit
    answer = answer_of(text, at, length)
    value, taken = np.float64(answer), length
    if answer < 0:
        value, taken = read_decimal(text, at)
    if taken != length or length == 0:
        return np.int64(-_EMPTY_LABEL if is_missing(text, at, length) else -_BAD_LABEL)
    if threshold != NO_THRESHOLD:
        return np.int64(value >= threshold)
    return np.int64(value) if value in (0.0, 1.0) else np.int64(-_NUMBER_LABEL)


@inlined
def hash_cell(text: int, at: int, length: int) -> Any:
    """Reads 1 to 8 hexadecimal digits: (hash, VALUE, MISSING or a negative mistake)."""
    if is_missing(text, at, length):
        return np.uint64(0), np.int64(MISSING)
    value, taken = read_short_hex(text, at)
    if taken == length:
        return value, np.int64(VALUE)
    return np.uint64(0), np.int64(-_LONG_HEX if taken == TOO_LARGE else -_BAD_HEX)


@inlined
def category_key(text: int, at: int, length: int) -> Any:
    """Hashes the text of a category to its key, 0 where it is missing.

    What programs write differently is the same category: 47 and 47.0, True and true.
    """
    if is_missing(text, at, length):
        return np.uint64(0)
    if truth_of(text, at, length) >= 0:
        return hash_word(in_lower_case(first_bytes(text, at, length), length), length)
    return hash_text(text, at, without_point(text, at, length))


@inlined
def without_point(text: int, at: int, length: int) -> Any:
    """Counts the bytes of a cell without the point and the zeros that end a whole number.

    Programs write whole numbers as 47.0 as soon as one of their column is missing.
    """
    end = length
    while end > 0 and byte_at(text, at + end - 1) == _ZERO:
        end -= 1
    if end == length or end < 2 or byte_at(text, at + end - 1) != _POINT:
        return length
    first = 1 if byte_at(text, at) == _MINUS else 0
    for k in range(first, end - 1):
        if not _ZERO <= byte_at(text, at + k) <= _NINE:
            return length
    return end - 1 if end - 1 > first else length
