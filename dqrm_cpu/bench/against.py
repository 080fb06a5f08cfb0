"""A benchmark beside an earlier one: what got slower by more than either of them scattered."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dqrm_cpu.bench.document import FORMAT, Circumstances
from dqrm_cpu.bench.result import CaseResult
from dqrm_cpu.bench.timing import Timing
from dqrm_cpu.errors import ConfigError

_LEAST_CHANGE = 0.05  # medians of one machine differ by this much from run to run


class TimedGroup(NamedTuple):
    """Of any benchmark: contestants that took turns, and the one that the others are divided by."""

    case: str
    name: str
    baseline: str
    timings: Mapping[str, Timing]


@dataclass(frozen=True)
class Change:
    """Of one contestant. Both times are divided by their group's baseline: a slow day of the machine cancels.

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
    """A benchmark's JSON file."""

    path: Path
    document: Mapping[str, Any]

    def differences(self, around: Circumstances) -> list[str]:
        """What makes its times incomparable with those of now."""
        then, now = self.document["machine"], around.machine.as_dict()
        found = [
            f"{key} is {now[key]}, was {then.get(key)}"
            for key in ("cpu_model", "cores", "isa")
            if _differ(now, then, key)
        ]
        if around.threads != self.document["threads"]:
            found.append(f"threads are {around.threads}, were {self.document['threads']}")
        if around.quick or self.document["quick"]:
            found.append("one of them was quick")
        return found


def read_earlier(path: Path, benchmark: str) -> Earlier:
    """Refuses whatever is no result of this benchmark."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != FORMAT or document["benchmark"] != benchmark:
            raise ValueError(f"it is format {document['format']} of {document['benchmark']}")
        missing = {"cases", "machine", "threads", "quick"} - document.keys()
        if missing:
            raise ValueError(f"it has no {', '.join(sorted(missing))}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"--against {path} is no result of bench {benchmark} ({error}); give a file that its --json wrote"
        ) from error
    return Earlier(path, document)


def timed_groups(results: Iterable[CaseResult]) -> list[TimedGroup]:
    """Of a benchmark of steps or kernels."""
    return [
        TimedGroup(result.case.name, group.name, group.baseline, {entry.name: entry.timing for entry in group.entries})
        for result in results
        for group in result.groups
    ]


def changes_since(earlier: Earlier, groups: Iterable[TimedGroup]) -> list[Change]:
    """Of every contestant that took part both times, but the baselines."""
    found: list[Change] = []
    for group in groups:
        groups_then = earlier.document["cases"].get(group.case, {}).get("groups", {})
        found += _of_group(group, groups_then.get(group.name, {}).get("contestants", {}))
    return found


def _of_group(group: TimedGroup, then: Mapping[str, Any]) -> Iterable[Change]:
    both = [name for name in group.timings if name in then]
    has_base = group.baseline in both and both != [group.baseline]
    base, base_noise = _compared(group.timings[group.baseline], then[group.baseline]) if has_base else (1.0, 0.0)
    for name in both:
        if not has_base or name != group.baseline:
            ratio, noise = _compared(group.timings[name], then[name])
            yield Change(group.case, name, ratio / base, max(_LEAST_CHANGE, base_noise + noise), alone=not has_base)


def _compared(now: Timing, then: Mapping[str, Any]) -> tuple[float, float]:
    """Now over then; and half of what lies between the quartiles, of both, over the medians."""
    lower_s, upper_s = now.quartiles_s
    then_s, spread_then_s = float(then["median_s"]), float(then["upper_quartile_s"] - then["lower_quartile_s"])
    return now.median_s / then_s, (upper_s - lower_s) / 2 / now.median_s + spread_then_s / 2 / then_s


def _differ(now: Mapping[str, Any], then: Mapping[str, Any], key: str) -> bool:
    value = now[key]
    return (list(value) if isinstance(value, tuple) else value) != then.get(key)
