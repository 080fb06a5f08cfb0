"""Lines that are no rows: what is wrong with them, and whether they end the preparation, are skipped or kept."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from dqrm_cpu.base.files import unwritable
from dqrm_cpu.data.prepare.row_layout import LONGEST_LINE
from dqrm_cpu.errors import DataError

QUARANTINE_FILE = "bad-rows.txt"

MOST_SHOWN = 10
"""How many bad lines of a block are remembered one by one; the others are only counted."""

SHOWN_BYTES = 60
"""How many bytes of a bad line a message shows at most."""


class Mistake(IntEnum):
    """Why a line is not a row; compiled functions return the negative."""

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
    NUMBER_LABEL = 14
    BAD_TIME = 15
    BAD_WEIGHT = 16
    EMPTY_LABEL = 17


_MEANING = {
    Mistake.TOO_FEW_FIELDS: "the line ends here, but more fields are expected",
    Mistake.TOO_MANY_FIELDS: "the line goes on behind its last field",
    Mistake.BAD_LABEL: "the label is neither 0 nor 1, true nor false, yes nor no",
    Mistake.EMPTY_LABEL: "the label is neither 0 nor 1, true nor false, yes nor no, but empty",
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
    Mistake.BAD_TIME: "not a time: a date such as 2024-01-06 or 2024-01-06T12:30:00Z, or a number",
    Mistake.BAD_WEIGHT: "not a weight: a number from 0 on, which every row has",
    Mistake.NUMBER_LABEL: "the label is neither 0 nor 1 but another number; for ratings and the like, a line "
    "`positive = 4` in the schema makes those of 4 and more clicks",
}


@dataclass(frozen=True)
class BadLine:
    """A line of a block that is no row."""

    line: int  # within the block, from 0
    field: int  # from 0
    mistake: int
    text: bytes  # how it begins


@dataclass(frozen=True)
class Offender:
    """A line of a source that was no row, as the spool remembers it."""

    line: int  # of its file, from 1
    field: int  # from 1
    mistake: int
    text: str  # how the line, or what is wrong in it, begins


def _offender(bad: BadLine, first_line: int) -> Offender:
    shown = bad.text.rstrip(b"\r").decode("utf-8", "backslashreplace")
    return Offender(first_line + bad.line + 1, bad.field + 1, bad.mistake, shown)


def describe(path: str, offender: Offender) -> str:
    """Describes a bad line in one line for a person."""
    meaning = _MEANING[Mistake(offender.mistake)]
    return f"{path}, line {offender.line:,}, field {offender.field}: {meaning} ({offender.text!r})"


class BadRowAdvice(NamedTuple):
    """What to do about bad rows, in the words of whatever command reads them."""

    on_the_first: str
    on_many: str


_ADVICE = BadRowAdvice(
    "--bad-rows skip goes on without such rows, --bad-rows quarantine keeps them in a file",
    "is --format right? Raise --max-bad-rows if they are expected",
)


class BadRows:
    """Counts bad lines over all sources, and keeps them if that is the policy."""

    def __init__(
        self, policy: str, most: int, folder: Path | None, count: int, kept_bytes: int, advice: BadRowAdvice = _ADVICE
    ) -> None:
        """`folder`: where lines are kept; None: whoever calls `take` keeps them."""
        self.count = count
        self.kept_bytes = kept_bytes
        self._policy, self._most, self._advice = policy, most, advice
        self._path = folder / QUARANTINE_FILE if policy == "quarantine" and folder is not None else None
        if self._path is not None and (kept_bytes or self._path.exists()):
            # What was written behind the last complete file of the spool comes again.
            self._append(self._path, b"")

    @property
    def most_in_block(self) -> int:
        """The number of bad lines of one block that ends the preparation, whatever came before."""
        return 1 if self._policy == "stop" else self._most + 1

    @property
    def keeps_text(self) -> bool:
        """True where bad lines go to a file, which needs the text of all of them."""
        return self._policy == "quarantine"

    def take(
        self, first: Sequence[BadLine], count: int, text: bytes, path: str, first_line: int
    ) -> tuple[Offender, ...]:
        """Takes the bad lines of a block: the first ones, how many, their text; DataError if the policy says so."""
        if not count:
            return ()
        offenders = tuple(_offender(line, first_line) for line in first[:MOST_SHOWN])
        if self._policy == "stop":
            raise DataError(f"{describe(path, offenders[0])}; {self._advice.on_the_first}")
        self.count += count
        if self.count > self._most:
            raise DataError(
                f"{self.count:,} bad rows, more than --max-bad-rows {self._most:,}; one of the last: "
                f"{describe(path, offenders[-1])}; {self._advice.on_many}"
            )
        if self._path is not None:
            self._append(self._path, text)
        return offenders

    def _append(self, path: Path, text: bytes) -> None:
        """Adds to what is kept; whatever lies behind that, such as what a full disk took in part, is dropped."""
        try:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            with os.fdopen(os.open(path, flags, 0o666), "wb") as file:
                file.truncate(self.kept_bytes)
                self.kept_bytes += file.write(text)
        except OSError as error:
            raise unwritable(path, error, DataError) from error
