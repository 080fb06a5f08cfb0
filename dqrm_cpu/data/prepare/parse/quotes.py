"""Quoted fields (RFC 4180): a block of text with quotes becomes one without, line by line, before it is parsed.

Fields are then apart by a byte that no UTF-8 text has, so that delimiters within quotes are text like any other.
A line feed within quotes is a mistake: blocks end between lines, wherever a line ends.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.data.prepare.bad_rows import Mistake
from dqrm_cpu.data.prepare.row_layout import BETWEEN_FIELDS, LONGEST_LINE
from dqrm_cpu.kernels.jit.compile import inlined, thorough_kernel

_QUOTE, _NEWLINE, _RETURN = 34, 10, 13
_OPEN, _BEHIND, _FOREIGN = int(Mistake.OPEN_QUOTE), int(Mistake.BEHIND_QUOTE), int(Mistake.NO_TEXT)
_LONG_LINE = int(Mistake.LONG_LINE)


@inlined
def quoted_field(text: Any, at: int, delimiter: int, out: Any, written: int) -> Any:
    """Copies from behind an opening quote to the closing one: (at, written, mistake or 0)."""
    while text[at] != _NEWLINE and text[at] != BETWEEN_FIELDS:
        if text[at] == _QUOTE:
            at += 1
            if text[at] != _QUOTE:
                ends = text[at] == delimiter or text[at] == _NEWLINE
                ends = ends or (text[at] == _RETURN and text[at + 1] == _NEWLINE)
                return at, written, 0 if ends else _BEHIND
        out[written] = text[at]
        written += 1
        at += 1
    return at, written, _OPEN if text[at] == _NEWLINE else _FOREIGN


@inlined
def unquote_line(text: Any, at: int, delimiter: int, out: Any, written: int) -> Any:
    """Copies a line without its quotes, up to the line feed: (at, written, field, mistake or 0)."""
    field, starts = 0, True  # whether a field starts here
    while text[at] != _NEWLINE:
        byte = text[at]
        if byte == BETWEEN_FIELDS:
            return at, written, field, _FOREIGN
        if starts and byte == _QUOTE:
            at, written, mistake = quoted_field(text, at + 1, delimiter, out, written)
            if mistake != 0:
                return at, written, field, mistake
            starts = False
            continue
        starts = byte == delimiter
        field += starts
        out[written] = BETWEEN_FIELDS if starts else byte
        written += 1
        at += 1
    return at, written, field, 0


@thorough_kernel
def unquote(
    text: NDArray[np.uint8], size: int, delimiter: int, out: NDArray[np.uint8], mistakes: NDArray[np.int64], place: Any
) -> None:
    """Copies text up to `size` without its quotes; a line with a mistake becomes empty, in mistakes int64[n, 3].

    place = int64[at, written, line, mistakes] says where to go on; stops early when no mistake fits any more.
    A mistake is noted as its line, its field and its number.
    """
    at, written, line, num_mistakes = place[0], place[1], place[2], place[3]
    while at < size and num_mistakes < mistakes.shape[0]:
        began, start = written, at
        at, written, field, mistake = unquote_line(text, at, delimiter, out, began)
        while text[at] != _NEWLINE:  # where a mistake ended it
            at += 1
        if at - start > LONGEST_LINE:
            field, mistake = 0, _LONG_LINE
        if mistake != 0:
            mistakes[num_mistakes, 0], mistakes[num_mistakes, 1], mistakes[num_mistakes, 2] = line, field, mistake
            num_mistakes += 1
            written = began
        out[written] = _NEWLINE
        written += 1
        at += 1
        line += 1
    place[0], place[1], place[2], place[3] = at, written, line, num_mistakes
