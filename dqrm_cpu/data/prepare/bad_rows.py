"""What happens to lines that are no rows: stop at the first one, skip them, or keep them in a file."""

from pathlib import Path

from dqrm_cpu.data.prepare.mistakes import MEANING, Mistake
from dqrm_cpu.data.prepare.parse import BadLine
from dqrm_cpu.data.prepare.spool import Offender
from dqrm_cpu.errors import DataError

QUARANTINE_FILE = "bad-rows.txt"

MOST_OFFENDERS = 10
_SHOWN_BYTES = 60


def offender_of(bad: BadLine, first_line: int) -> Offender:
    """What to remember of a bad line."""
    shown = bad.text.rstrip(b"\r\n")[:_SHOWN_BYTES].decode("utf-8", "backslashreplace")
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
            with self._path.open("ab") as file:
                file.truncate(kept_bytes)

    def take(self, bad: tuple[BadLine, ...], path: str, first_line: int) -> tuple[Offender, ...]:
        """The first offenders of a block; DataError when the policy says so."""
        if not bad:
            return ()
        offenders = tuple(offender_of(line, first_line) for line in bad[:MOST_OFFENDERS])
        if self._policy == "stop":
            raise DataError(
                f"{describe(path, offenders[0])}; --bad-rows skip goes on without such rows, "
                "--bad-rows quarantine keeps them in a file"
            )
        self.count += len(bad)
        if self.count > self._most:
            raise DataError(
                f"{self.count:,} bad rows, more than --max-bad-rows {self._most:,}; the last: "
                f"{describe(path, offenders[-1])}; is --format right? Raise --max-bad-rows if they are expected"
            )
        if self._policy == "quarantine":
            with self._path.open("ab") as file:
                self.kept_bytes += file.write(b"".join(line.text for line in bad))
        return offenders
