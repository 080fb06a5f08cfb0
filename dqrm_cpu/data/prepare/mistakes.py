"""What can be wrong with a line."""

from enum import IntEnum


class Mistake(IntEnum):
    """Why a line is not a row; the parser returns their negatives."""

    TOO_FEW_FIELDS = 1
    TOO_MANY_FIELDS = 2
    BAD_LABEL = 3
    BAD_INTEGER = 4
    LARGE_INTEGER = 5
    BAD_DECIMAL = 6
    BAD_HEX = 7
    LONG_HEX = 8
    EMPTY_LINE = 9
    OPEN_QUOTE = 10
    BEHIND_QUOTE = 11
    NO_TEXT = 12
    LONG_LINE = 13


LONGEST_LINE = 1 << 20
"""Bytes of a line without its end; blocks have room for one that is as long beyond their size."""

MEANING = {
    Mistake.TOO_FEW_FIELDS: "the line ends here, but more fields are expected",
    Mistake.TOO_MANY_FIELDS: "the line goes on behind its last field",
    Mistake.BAD_LABEL: "the label is neither 0 nor 1",
    Mistake.BAD_INTEGER: "not a whole number",
    Mistake.LARGE_INTEGER: "a number that does not fit into 32 bits",
    Mistake.BAD_DECIMAL: "not a number",
    Mistake.BAD_HEX: "not a hexadecimal hash",
    Mistake.LONG_HEX: "a hash of more than 8 digits",
    Mistake.EMPTY_LINE: "an empty line",
    Mistake.OPEN_QUOTE: "a quote that does not close on its line; line feeds within quotes are not supported",
    Mistake.BEHIND_QUOTE: "something stands behind the closing quote; a quote within quotes is written twice",
    Mistake.NO_TEXT: "a byte (255) that no UTF-8 text has",
    Mistake.LONG_LINE: f"a line of more than {LONGEST_LINE:,} bytes, the longest that is read",
}
