"""What happens to lines that are no rows: stop at the first one, skip them, or keep them in a file."""

import os
from pathlib import Path

from dqrm_cpu.base.files import unwritable
from dqrm_cpu.data.prepare.mistakes import MEANING, Mistake
from dqrm_cpu.data.prepare.parse import MOST_SHOWN, BadLine, ParsedBlock
from dqrm_cpu.data.prepare.spool import Offender
from dqrm_cpu.errors import DataError

QUARANTINE_FILE = "bad-rows.txt"

MOST_OFFENDERS = MOST_SHOWN


def offender_of(bad: BadLine, first_line: int) -> Offender:
    """What to remember of a bad line."""
    shown = bad.text.rstrip(b"\r").decode("utf-8", "backslashreplace")
    return Offender(first_line + bad.line + 1, bad.field + 1, bad.mistake, shown)


def describe(path: str, offender: Offender) -> str:
    """One line for a person."""
    meaning = MEANING[Mistake(offender.mistake)]
    return f"{path}, line {offender.line:,}, field {offender.field}: {meaning} ({offender.text!r})"


class BadRows:
    """Counts bad lines over all sources, and keeps them if that is the policy."""

    def __init__(self, policy: str, most: int, folder: Path, count: int, kept_bytes: int) -> None:
        self.count = count
        self.kept_bytes = kept_bytes
        self._policy, self._most = policy, most
        self._path = folder / QUARANTINE_FILE
        if policy == "quarantine" and (kept_bytes or self._path.exists()):
            # What was written behind the last complete step comes again.
            self._append(b"")

    @property
    def most_in_block(self) -> int:
        """How many bad lines of one block end the preparation, whatever came before."""
        return 1 if self._policy == "stop" else self._most + 1

    @property
    def keeps_text(self) -> bool:
        """Says whether the text of bad lines has to be kept."""
        return self._policy == "quarantine"

    def take(self, parsed: ParsedBlock, path: str, first_line: int) -> tuple[Offender, ...]:
        """The first offenders of a block; DataError when the policy says so."""
        if not parsed.num_bad:
            return ()
        offenders = tuple(offender_of(line, first_line) for line in parsed.bad[:MOST_OFFENDERS])
        if self._policy == "stop":
            raise DataError(
                f"{describe(path, offenders[0])}; --bad-rows skip goes on without such rows, "
                "--bad-rows quarantine keeps them in a file"
            )
        self.count += parsed.num_bad
        if self.count > self._most:
            raise DataError(
                f"{self.count:,} bad rows, more than --max-bad-rows {self._most:,}; one of the last: "
                f"{describe(path, offenders[-1])}; is --format right? Raise --max-bad-rows if they are expected"
            )
        if self._policy == "quarantine":
            self._append(parsed.bad_text)
        return offenders

    def _append(self, text: bytes) -> None:
        """Adds to what is kept; whatever lies behind that, such as what a full disk took in part, is dropped."""
        try:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            with os.fdopen(os.open(self._path, flags, 0o666), "wb") as file:
                file.truncate(self.kept_bytes)
                self.kept_bytes += file.write(text)
        except OSError as error:
            raise unwritable(self._path, error, DataError) from error
