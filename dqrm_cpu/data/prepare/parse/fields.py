"""One field of text to one value: hexadecimal hashes, whole and decimal numbers, strings.

Each reader gets the address of the text and the index at which the field starts, and returns the value and the
field's length, or a negative length where the field cannot be read. None of them looks for what ends the field,
except those that take any byte: whoever calls checks what stands behind.
"""

from typing import Any

import numpy as np

from dqrm_cpu.kernels.jit.compile import inlined
from dqrm_cpu.kernels.jit.hashing import INCREMENT, mix64
from dqrm_cpu.kernels.jit.memory import byte_at, trailing_zeros, word_at

INVALID = -1
TOO_LARGE = -2

NEWLINE, CARRIAGE_RETURN = 10, 13

_EVERY_BYTE = 0x0101010101010101
_ONES = np.uint64(_EVERY_BYTE)
_HIGH_BITS = np.uint64(0x80 * _EVERY_BYTE)
_NIBBLES = np.uint64(0x0F * _EVERY_BYTE)
_HIGH_NIBBLES = np.uint64(0xF0 * _EVERY_BYTE)
_SIXES = np.uint64(6 * _EVERY_BYTE)
_ZEROS = np.uint64(ord("0") * _EVERY_BYTE)
_EVEN_BYTES = np.uint64(0x00FF00FF00FF00FF)
_EVEN_PAIRS = np.uint64(0x0000FFFF0000FFFF)
_LOW_HALF = np.uint64(0xFFFFFFFF)
_NINE, _TEN, _HUNDRED, _TEN_THOUSAND = np.uint64(9), np.uint64(10), np.uint64(100), np.uint64(10_000)
_4, _6, _8, _16, _32 = np.uint64(4), np.uint64(6), np.uint64(8), np.uint64(16), np.uint64(32)
_LETTER_OFFSET = np.uint64(ord("a") - ord("0") - 10)

_LARGEST_INT32 = 2**31 - 1
_LARGEST_DIGITS = 10**17


@inlined
def read_hex(text: int, at: int) -> Any:
    """Reads 1 to 8 hexadecimal digits; 8 lower-case ones, the common case, all at once."""
    word = word_at(text, at)
    digits = (word & _NIBBLES) + ((word >> _6) & _ONES) * _NINE
    # Writing the digits out again and comparing finds every byte that was none.
    letters = ((digits + _SIXES) >> _4) & _ONES
    if digits + _ZEROS + letters * _LETTER_OFFSET == word and digits & _HIGH_NIBBLES == np.uint64(0):
        pairs = ((digits << _4) | (digits >> _8)) & _EVEN_BYTES
        fours = ((pairs << _8) | (pairs >> _16)) & _EVEN_PAIRS
        return ((fours << _16) | (fours >> _32)) & _LOW_HALF, np.int64(8)
    return read_short_hex(text, at)


@inlined
def read_short_hex(text: int, at: int) -> Any:
    """Reads hexadecimal digits one by one, in either case."""
    value = np.uint64(0)
    length = np.int64(0)
    while length <= 8:
        digit = hex_digit(byte_at(text, at + length))
        if digit < 0:
            break
        value = (value << _4) | np.uint64(digit)
        length += 1
    return value, (length if 0 < length <= 8 else (TOO_LARGE if length else INVALID))


@inlined
def hex_digit(byte: int) -> Any:
    """Returns the value of a hexadecimal digit, 0 to 15, or -1."""
    if 48 <= byte <= 57:
        return byte - 48
    lower = byte | 32
    return lower - 87 if 97 <= lower <= 102 else np.int64(-1)


@inlined
def read_integer(text: int, at: int, delimiter: int) -> Any:
    """Reads a whole number that fits into 32 bits; up to 7 digits and the delimiter, the common case, all at once."""
    word = word_at(text, at)
    differing = word ^ (_ONES * np.uint64(delimiter))
    matches = (differing - _ONES) & ~differing & _HIGH_BITS
    if matches != np.uint64(0):
        length = trailing_zeros(matches) >> 3
        if length > 0:
            bits = np.uint64(8 * length)
            digits = (word << (np.uint64(64) - bits)) | (_ZEROS >> bits)
            if digits & (digits + _SIXES) & _HIGH_NIBBLES == _ZEROS:
                digits = digits & _NIBBLES
                pairs = (digits * _TEN + (digits >> _8)) & _EVEN_BYTES
                fours = (pairs * _HUNDRED + (pairs >> _16)) & _EVEN_PAIRS
                return np.int64((fours * _TEN_THOUSAND + (fours >> _32)) & _LOW_HALF), length
    return read_any_integer(text, at)


@inlined
def read_any_integer(text: int, at: int) -> Any:
    """Reads a whole number digit by digit, with a sign."""
    negative = byte_at(text, at) == 45
    start = np.int64(1) if negative else np.int64(0)
    length, value = start, np.int64(0)
    while True:
        digit = byte_at(text, at + length) - 48
        if not 0 <= digit <= 9:
            break
        value = value * 10 + digit
        length += 1
        if value > _LARGEST_INT32 + (1 if negative else 0):
            return np.int64(0), np.int64(TOO_LARGE)
    if length == start:
        return np.int64(0), np.int64(INVALID)
    return (-value if negative else value), length


@inlined
def read_decimal(text: int, at: int) -> Any:
    """Reads a number with a point and an exponent, both optional; neither infinity nor NaN."""
    negative = byte_at(text, at) == 45
    length = np.int64(1) if negative else np.int64(0)
    value, length, count, _ = read_digits(text, at, length, 0.0)
    places = np.int64(0)
    if byte_at(text, at + length) == 46:
        value, length, places, _ = read_digits(text, at, length + 1, value)
    if count + places == 0:
        return 0.0, np.int64(INVALID)
    exponent = np.int64(0)
    if byte_at(text, at + length) | 32 == 101:
        plus = byte_at(text, at + length + 1) == 43
        length += 2 if plus else 1
        exponent, taken = read_any_integer(text, at + length)
        if taken < 0 or (plus and byte_at(text, at + length) == 45):
            return 0.0, np.int64(INVALID)
        length += taken
    # Powers of ten are exact, those of a tenth are not: up to 15 digits, the quotient is the nearest double.
    shift = np.float64(exponent - places)
    value = value * 10.0**shift if shift >= 0.0 else value / 10.0**-shift
    if not value < 1e300:
        return 0.0, np.int64(TOO_LARGE)
    return (-value if negative else value), length


@inlined
def read_digits(text: int, at: int, length: int, value: float) -> Any:
    """Goes on with a number through the digits from `length` on."""
    start = length
    while True:
        digit = byte_at(text, at + length) - 48
        if not 0 <= digit <= 9:
            return value, length, length - start, False
        value = value * 10.0 + digit
        length += 1


@inlined
def text_length(text: int, at: int, delimiter: int) -> Any:
    """Counts the bytes up to the delimiter or the end of the line."""
    length = np.int64(0)
    while True:
        byte = byte_at(text, at + length)
        if byte in (delimiter, NEWLINE):
            return length
        if byte == CARRIAGE_RETURN and byte_at(text, at + length + 1) == NEWLINE:
            return length
        length += 1


@inlined
def hash_text(text: int, at: int, length: int) -> Any:
    """Hashes text to 64 bits that depend on every byte, never 0: 0 stands for a missing field."""
    hashed = INCREMENT ^ np.uint64(length)
    done = np.int64(0)
    while done + 8 <= length:
        hashed = mix64(hashed ^ word_at(text, at + done))
        done += 8
    if done < length:
        rest = np.uint64(8 * (8 - (length - done)))
        hashed = mix64(hashed ^ ((word_at(text, at + done) << rest) >> rest))
    hashed = mix64(hashed)
    return hashed if hashed != np.uint64(0) else np.uint64(1)


@inlined
def hash_word(word: Any, length: int) -> Any:
    """Hashes a text of 1 to 7 bytes, given as a word, as `hash_text` does."""
    hashed = mix64(mix64(INCREMENT ^ np.uint64(length) ^ word))
    return hashed if hashed != np.uint64(0) else np.uint64(1)
