"""The result of one check of the machine."""

from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    """The verdict of a check. Only FAIL stops a training run."""

    OK = "ok"
    NOTE = "note"  # something is absent that this run can do without
    WARNING = "warning"  # it runs, but slower or less safely than it could
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """One check: its name, what was found, and the command or setting that mends it (empty if nothing is to mend)."""

    check: str
    verdict: Verdict
    found: str
    mend: str = ""

    def as_dict(self) -> dict[str, str]:
        """Returns plain values for JSON."""
        return {"check": self.check, "verdict": self.verdict.value, "found": self.found, "mend": self.mend}
