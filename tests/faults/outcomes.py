"""What a process did, and what came of a case."""

import re
import signal
from dataclasses import dataclass
from typing import NamedTuple

SAME, REFUSED, STOPPED, ACCEPTED = "same", "refused", "stopped", "accepted"
WRONG, LOST, TRACEBACK, CRASH, HANG = "wrong", "lost", "traceback", "crash", "hang"

GOOD = (SAME, REFUSED, STOPPED, ACCEPTED)
"""The result of an undisturbed run to the bit, perhaps after the same command once more; an error of one line and
status 1 or 2; an orderly end after a signal; a file that says something else
than before, and is one that might have been written like that."""

DEFECTS = (WRONG, LOST, TRACEBACK, CRASH, HANG)
"""Another model, prediction, metric or row with status 0; work that was safe and cannot be gone on with; an exception
that nobody turned into a line; SIGSEGV, SIGBUS, SIGABRT and other ends of that kind; no end at all."""

OUTCOMES = (*GOOD, *DEFECTS)

_ERROR = re.compile(r"^dqrm-cpu: ", re.MULTILINE)
_ORDERLY = {128 + number for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGPIPE)}


@dataclass(frozen=True)
class Done:
    """How a process ended: `status` as a shell would tell it, 128 + N where signal N ended it."""

    status: int
    killed: bool  # by a signal, rather than by itself
    out: str
    err: str
    timed_out: bool = False
    calls: int = 0  # that the fault library counted

    @property
    def outcome(self) -> str | None:
        """What the end alone says; None where the process claims success or was killed by SIGKILL."""
        if self.timed_out:
            return HANG
        if "Traceback (most recent call last)" in self.err:
            return TRACEBACK
        if self.killed:
            return None if self.status == 128 + signal.SIGKILL else CRASH
        if self.status in (1, 2):
            # An error without a word, or with another one's, is no refusal.
            return REFUSED if _ERROR.search(self.err) or "damaged: " in self.out else TRACEBACK
        if self.status in _ORDERLY:
            return STOPPED
        return None if self.status == 0 else CRASH


class Verdict(NamedTuple):
    """The outcome of a case, what was done, for a defect how it looked, and with which others it is counted."""

    outcome: str
    what: str
    detail: str = ""
    group: str = ""


def verdict_of(what: str, done: Done, good: bool | None = None) -> Verdict:
    """By how a process ended and, where it ended well, by whether its result was the right one."""
    outcome = done.outcome
    if outcome is None:
        outcome = SAME if good else WRONG
    detail = "" if outcome in GOOD else f"status {done.status}\n{done.err[-3000:]}"
    return Verdict(outcome, what, detail)
