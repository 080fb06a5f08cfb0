"""Runs `bench exchange`: starts a world of ranks for each case, and gathers what its first rank left."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dqrm_cpu.bench.exchange import RANKS, ExchangeTask, make_case
from dqrm_cpu.bench.timing import Timing
from dqrm_cpu.bench.world import run_ranks

_WORK = "dqrm_cpu.bench.exchange_work"


@dataclass(frozen=True)
class ExchangeEntry:
    """A contestant that took part; no bytes and phases where it trains whole steps."""

    name: str
    about: str
    timing: Timing
    bytes_per_step: Mapping[str, float]  # for the other ranks, by rank 0
    phases_s: Mapping[str, float]  # medians, on rank 0

    @property
    def bytes_in_all(self) -> float:
        return sum(self.bytes_per_step.values())


@dataclass(frozen=True)
class ExchangeGroup:
    """Contestants that took turns; `absent` says by name why others did not."""

    name: str
    entries: tuple[ExchangeEntry, ...]
    absent: Mapping[str, str]


@dataclass(frozen=True)
class ExchangeResult:
    """One case."""

    case: str
    about: str
    ranks: int
    transports: Mapping[str, str]  # why each was taken
    groups: tuple[ExchangeGroup, ...]

    def entries(self) -> dict[str, ExchangeEntry]:
        return {entry.name: entry for group in self.groups for entry in group.entries}

    def medians_s(self) -> dict[str, float]:
        return {name: entry.timing.median_s for name, entry in self.entries().items()}


def run_exchange_case(task: ExchangeTask) -> ExchangeResult:
    """Starts the ranks and waits for them."""
    return _result(task, run_ranks(_WORK, asdict(task), RANKS, task.threads))


def _result(task: ExchangeTask, figures: Mapping[str, Any]) -> ExchangeResult:
    groups = tuple(
        ExchangeGroup(
            name,
            tuple(_entry(contestant, plain) for contestant, plain in group["contestants"].items()),
            group["absent"],
        )
        for name, group in figures["groups"].items()
    )
    return ExchangeResult(task.case, make_case(task).about, figures["ranks"], figures["transports"], groups)


def _entry(name: str, plain: Mapping[str, Any]) -> ExchangeEntry:
    timing = Timing(tuple(plain["samples_s"]), plain["steps_per_turn"])
    return ExchangeEntry(name, plain["about"], timing, plain.get("bytes_per_step", {}), plain.get("phases_s", {}))
