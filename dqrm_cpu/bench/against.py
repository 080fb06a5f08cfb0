"""A benchmark beside an earlier one: what got slower by more than either of them scattered."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dqrm_cpu.bench.document import FORMAT, Circumstances
from dqrm_cpu.bench.result import CaseResult, Entry, GroupResult
from dqrm_cpu.errors import ConfigError

_LEAST_CHANGE = 0.05  # medians of one machine differ by this much from run to run


@dataclass(frozen=True)
class Change:
    """Of one contestant. Both times are divided by their group's baseline: a slow day of the machine cancels."""

    case: str
    name: str
    ratio: float  # now over then
    noise: float  # relative; what is within says nothing

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


def changes_since(earlier: Earlier, results: Iterable[CaseResult]) -> list[Change]:
    """Of every contestant but the baselines that took part both times."""
    found = []
    for result in results:
        groups = earlier.document["cases"].get(result.case.name, {}).get("groups", {})
        for group in result.groups:
            then = groups.get(group.name, {}).get("contestants", {})
            found += list(_of_group(result.case.name, group, then))
    return found


def _of_group(case: str, group: GroupResult, then: Mapping[str, Any]) -> Iterable[Change]:
    now = {entry.name: entry for entry in group.entries}
    if group.baseline not in now or group.baseline not in then:
        return
    base = now[group.baseline].median_s / then[group.baseline]["median_s"]
    base_noise = _noise(now[group.baseline], then[group.baseline])
    for name, entry in now.items():
        if name != group.baseline and name in then:
            ratio = entry.median_s / then[name]["median_s"] / base
            yield Change(case, name, ratio, max(_LEAST_CHANGE, base_noise + _noise(entry, then[name])))


def _noise(now: Entry, then: Mapping[str, Any]) -> float:
    """Half of what lies between the quartiles, of both, over the medians."""
    lower_s, upper_s = now.timing.quartiles_s
    scattered_now = (upper_s - lower_s) / 2 / now.median_s
    return scattered_now + float(then["upper_quartile_s"] - then["lower_quartile_s"]) / 2 / float(then["median_s"])


def _differ(now: Mapping[str, Any], then: Mapping[str, Any], key: str) -> bool:
    value = now[key]
    return (list(value) if isinstance(value, tuple) else value) != then.get(key)
