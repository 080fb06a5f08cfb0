"""A benchmark beside an earlier one: what got slower by more than either of them scattered."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dqrm_cpu.errors import ConfigError
from dqrm_cpu.lab.bench.harness.benchmark import RunEnvironment
from dqrm_cpu.lab.bench.harness.document import FORMAT
from dqrm_cpu.lab.bench.harness.result import CaseResult, GroupResult, Timing

_LEAST_CHANGE = 0.05  # medians of one machine differ by this much from run to run


@dataclass(frozen=True)
class Change:
    """The change of one contestant's time.

    Both times are divided by their group's baseline: a slow day of the machine cancels.
    `alone`: there was no baseline to divide by, both times or one, so that a slow day counts.
    """

    case: str
    name: str
    ratio: float  # now over then
    noise: float  # relative; what is within says nothing
    alone: bool = False

    @property
    def slower(self) -> bool:
        return self.ratio > 1 + self.noise

    @property
    def quicker(self) -> bool:
        return self.ratio < 1 / (1 + self.noise)


@dataclass(frozen=True)
class Earlier:
    """A benchmark's JSON file, as `--json` wrote it."""

    path: Path
    document: Mapping[str, Any]

    def differences(self, environment: RunEnvironment) -> list[str]:
        """Says what makes its times incomparable with those of now."""
        then, now = self.document["machine"], environment.machine.as_dict()
        differences = [
            f"{key} is {now[key]}, was {then.get(key)}"
            for key in ("cpu_model", "cores", "isa")
            if _differ(now, then, key)
        ]
        if environment.threads != self.document["threads"]:
            differences.append(f"threads are {environment.threads}, were {self.document['threads']}")
        if environment.quick or self.document["quick"]:
            differences.append("one of them was quick")
        return differences


def read_earlier(path: Path, benchmark: str) -> Earlier:
    """Reads a benchmark's JSON file.

    :raises ConfigError: when it is no result of this benchmark.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != FORMAT or document["benchmark"] != benchmark:
            raise ValueError(f"it is format {document['format']} of {document['benchmark']}")
        missing = {"cases", "machine", "threads", "quick"} - document.keys()
        if missing:
            raise ValueError(f"it has no {', '.join(sorted(missing))}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"--against {path} is no result of bench {benchmark} ({_reason(error)}); give a file that its --json wrote"
        ) from error
    return Earlier(path, document)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return (error.strerror or str(error)).lower()
    return f"it has no {error}" if isinstance(error, KeyError) else str(error)


def changes_since(earlier: Earlier, results: Iterable[CaseResult]) -> list[Change]:
    """Compares every contestant that took part both times, but the baselines."""
    changes: list[Change] = []
    for result in results:
        groups_then = earlier.document["cases"].get(result.name, {}).get("groups", {})
        for group in result.groups:
            changes += _of_group(result.name, group, groups_then.get(group.name, {}).get("contestants", {}))
    return changes


def _of_group(case: str, group: GroupResult, then: Mapping[str, Any]) -> Iterable[Change]:
    now = {entry.name: entry.timing for entry in group.entries}
    both = [name for name in now if name in then]
    has_base = group.baseline in both and both != [group.baseline]
    base, base_noise = _compared(now[group.baseline], then[group.baseline]) if has_base else (1.0, 0.0)
    for name in both:
        if not has_base or name != group.baseline:
            ratio, noise = _compared(now[name], then[name])
            yield Change(case, name, ratio / base, max(_LEAST_CHANGE, base_noise + noise), alone=not has_base)


def _compared(now: Timing, then: Mapping[str, Any]) -> tuple[float, float]:
    """Returns now over then, and half of what lies between the quartiles, of both, over the medians."""
    lower_s, upper_s = now.quartiles_s
    then_s, spread_then_s = float(then["median_s"]), float(then["upper_quartile_s"] - then["lower_quartile_s"])
    return now.median_s / then_s, (upper_s - lower_s) / 2 / now.median_s + spread_then_s / 2 / then_s


def _differ(now: Mapping[str, Any], then: Mapping[str, Any], key: str) -> bool:
    value = now[key]
    return (list(value) if isinstance(value, tuple) else value) != then.get(key)
