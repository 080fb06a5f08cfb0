"""Runs a benchmark over cases: makes tables and batches, lets the contestants take turns, gathers what came out."""

from collections.abc import Callable
from dataclasses import dataclass

from dqrm_cpu.bench.arena import Arenas
from dqrm_cpu.bench.benchmark import Benchmark, Group
from dqrm_cpu.bench.cases import Case
from dqrm_cpu.bench.contestant import set_up
from dqrm_cpu.bench.pool import Pool, make_pool, pool_size
from dqrm_cpu.bench.result import CaseResult, Entry, GroupResult, amortized_entries
from dqrm_cpu.bench.timing import Plan, time_interleaved
from dqrm_cpu.errors import DeviceError
from dqrm_cpu.profile.hardware import fingerprint

_BESIDE_TABLES_BYTES = 2_000_000_000
_CACHE_IF_UNKNOWN_KIB = 32 * 1024


@dataclass(frozen=True)
class Progress:
    """Where a benchmark stands; `done` of `total` rounds, warm-up included."""

    case: str
    group: str
    done: int
    total: int


Observer = Callable[[Progress], None]


def run_case(benchmark: Benchmark, case: Case, plan: Plan, observe: Observer) -> CaseResult:
    """Raises DeviceError when the machine has no room for the case's tables."""
    machine = fingerprint()
    needed = Arenas.COUNT * case.table_bytes + _BESIDE_TABLES_BYTES
    if machine.memory_available_bytes < needed:
        raise DeviceError(
            f"case {case.name} needs {needed / 1e9:.1f} GB of memory, "
            f"{machine.memory_available_bytes / 1e9:.1f} GB are free; leave it out with --cases, or try --quick"
        )
    cache_kib = max((cache.size_kib for cache in machine.caches), default=_CACHE_IF_UNKNOWN_KIB)
    model, arenas = case.config.model, Arenas(case)
    num_batches = pool_size(model, case.batch_size, cache_kib * 1024)
    pool = make_pool(model, case.batch_size, num_batches, case.config.seed)
    groups = [_run_group(case, group, pool, plan, observe) for group in benchmark.groups(case, arenas)]
    entries = {entry.name: entry for group in groups for entry in group.entries}
    derived = amortized_entries(benchmark.amortized, entries)
    return CaseResult(case, num_batches, tuple(groups), derived)


def _run_group(case: Case, group: Group, pool: Pool, plan: Plan, observe: Observer) -> GroupResult:
    total = plan.warmup_rounds + plan.rounds
    observe(Progress(case.name, group.name, 0, total))
    present, absent = set_up(group.contestants)
    try:
        timings = time_interleaved(
            present, pool, plan, lambda done: observe(Progress(case.name, group.name, done, total))
        )
    finally:
        for contestant in present:
            contestant.teardown()
    entries = [Entry(contestant.name, contestant.about, timings[contestant.name]) for contestant in present]
    return GroupResult(group.name, group.baseline, tuple(entries), absent)
