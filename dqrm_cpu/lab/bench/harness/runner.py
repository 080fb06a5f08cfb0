"""The one place that times: rounds in which every contestant has its turn, so that a busy machine meets all alike."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from dqrm_cpu.base.hardware import fingerprint
from dqrm_cpu.base.memory import format_size
from dqrm_cpu.errors import DeviceError
from dqrm_cpu.lab.bench.harness.batch_pool import Pool, make_pool, pool_size
from dqrm_cpu.lab.bench.harness.cases import Case
from dqrm_cpu.lab.bench.harness.contestant import Contestant, set_up
from dqrm_cpu.lab.bench.harness.result import CaseResult, ContestantResult, DerivedFigure, GroupResult, Timing
from dqrm_cpu.lab.bench.harness.shared_tables import SharedTables

_MOST_STEPS = 512
_BESIDE_TABLES_BYTES = 2_000_000_000
_CACHE_IF_UNKNOWN_KIB = 32 * 1024


@dataclass(frozen=True)
class TurnPlan:
    """The number and length of each contestant's turns."""

    rounds: int
    turn_s: float = 0.15  # a turn has as many steps as fit in, 1 to 512
    warmup_rounds: int = 2


@dataclass(frozen=True)
class BenchProgress:
    """The progress of a benchmark: `done` of `total` rounds, the first of which warm up; 0 of 0 without turns."""

    case: str
    doing: str
    done: int = 0
    total: int = 0
    warmup: int = 0


ProgressObserver = Callable[[BenchProgress], None]


@dataclass(frozen=True)
class Group:
    """Contestants that take turns, and are only ever compared with each other."""

    name: str
    contestants: Sequence[Contestant]
    baseline: str  # the one that a table shows the others against


@dataclass(frozen=True)
class Amortized:
    """A step whose expensive part comes once in `period` iterations: kept + (every - kept) / period.

    Thousands of steps would have to be timed to see that part often enough. The steps are the same but for it.
    """

    name: str
    about: str
    kept: str  # the contestant that leaves it out
    every: str  # the contestant that does it at every step
    period: int


T = TypeVar("T")


def rotated(contestants: Sequence[T], rounds: int) -> Iterator[Sequence[T]]:
    """Yields the order of each round, which begins with another contestant."""
    for number in range(rounds):
        first = number % len(contestants)
        yield (*contestants[first:], *contestants[:first])


def time_interleaved(
    contestants: Sequence[Contestant],
    pool: Pool,
    plan: TurnPlan,
    advance: Callable[[int], None] = lambda done: None,
    agree: Callable[[float], float] = lambda seconds: seconds,
) -> dict[str, Timing]:
    """Times contestants in turn, by name; `advance` hears of every round that is done.

    `agree` makes of a turn's seconds those of all ranks, where several take the same turns.

    A contestant takes the steps of its turn in a row, as training would, after one that is not timed: it brings the
    MLPs back into the caches.
    """
    steps = dict.fromkeys((contestant.name for contestant in contestants), 1)
    samples: dict[str, list[float]] = {name: [] for name in steps}
    for number, order in enumerate(rotated(contestants, plan.warmup_rounds + plan.rounds)):
        for contestant in order:
            name = contestant.name
            seconds = agree(_time_turn(contestant, pool, steps[name]))
            if number < plan.warmup_rounds:
                steps[name] = max(1, min(_MOST_STEPS, round(plan.turn_s / seconds)))
            else:
                samples[name].append(seconds)
        advance(number + 1)
    return {name: Timing(tuple(values), steps[name]) for name, values in samples.items()}


def _time_turn(contestant: Contestant, pool: Pool, steps: int) -> float:
    contestant.step(pool.next())
    works = [pool.next() for _ in range(steps)]
    start = time.perf_counter()
    for work in works:
        contestant.step(work)
    return (time.perf_counter() - start) / steps


def run_group(
    group: Group,
    pool: Pool,
    plan: TurnPlan,
    advance: Callable[[int], None] = lambda done: None,
    agree: Callable[[float], float] = lambda seconds: seconds,
) -> GroupResult:
    """Sets contestants up, times those that can take part, and takes them down."""
    present, absent = set_up(group.contestants)
    try:
        timings = time_interleaved(present, pool, plan, advance, agree)
    finally:
        for contestant in present:
            contestant.teardown()
    entries = [ContestantResult(contestant.name, contestant.about, timings[contestant.name]) for contestant in present]
    return GroupResult(group.name, group.baseline, tuple(entries), absent)


def run_case(
    case: Case,
    make_groups: Callable[[Case, SharedTables], Sequence[Group]],
    amortized: Iterable[Amortized],
    plan: TurnPlan,
    observe: ProgressObserver,
) -> CaseResult:
    """Runs the groups of a case in this process, on tables and batches that they share.

    :param make_groups: makes contestants that allocate nothing before their `setup`.
    :raises DeviceError: when the machine has no room for the case's tables.
    """
    machine = fingerprint()
    needed = SharedTables.COUNT * case.table_bytes + _BESIDE_TABLES_BYTES
    if machine.memory_available_bytes < needed:
        raise DeviceError(
            f"case {case.name} needs {format_size(needed)} of memory, "
            f"{format_size(machine.memory_available_bytes)} are free; leave it out with --cases, or try --quick"
        )
    cache_kib = max((cache.size_kib for cache in machine.caches), default=_CACHE_IF_UNKNOWN_KIB)
    model, total = case.config.model, plan.warmup_rounds + plan.rounds
    num_batches = pool_size(model, case.batch_size, cache_kib * 1024)
    pool = make_pool(model, case.batch_size, num_batches, case.config.seed)
    groups = []
    for group in make_groups(case, SharedTables(case)):
        observe(BenchProgress(case.name, group.name, 0, total, plan.warmup_rounds))

        def advance(done: int, name: str = group.name) -> None:
            observe(BenchProgress(case.name, name, done, total, plan.warmup_rounds))

        groups.append(run_group(group, pool, plan, advance))
    facts = {
        "batch_size": case.batch_size,
        "tables": len(model.table_rows),
        "rows": sum(model.table_rows),
        "embedding_dim": model.embedding_dim,
        "table_bytes": case.table_bytes,
        "batches_in_pool": num_batches,
    }
    medians_s = {name: median_s for group in groups for name, median_s in group.medians_s().items()}
    return CaseResult(case.name, case.about, facts, tuple(groups), derive(amortized, medians_s))


def derive(amortized: Iterable[Amortized], medians_s: Mapping[str, float]) -> tuple[DerivedFigure, ...]:
    """Computes the figures whose two contestants took part."""
    derived = []
    for figure in amortized:
        if figure.kept in medians_s and figure.every in medians_s:
            kept_s, every_s = medians_s[figure.kept], medians_s[figure.every]
            formula = f"{figure.kept} + ({figure.every} - {figure.kept}) / {figure.period}"
            median_s = kept_s + (every_s - kept_s) / figure.period
            derived.append(DerivedFigure(figure.name, figure.about, median_s, formula))
    return tuple(derived)
