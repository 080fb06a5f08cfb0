"""The description of a benchmark, and the machine and options under which it runs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dqrm_cpu.base.hardware import Fingerprint
from dqrm_cpu.lab.bench.harness.cases import CASES, Case, quick
from dqrm_cpu.lab.bench.harness.result import CaseResult, Ratio
from dqrm_cpu.lab.bench.harness.runner import Amortized, Group, ProgressObserver, TurnPlan, run_case
from dqrm_cpu.lab.bench.harness.shared_tables import SharedTables


@dataclass(frozen=True)
class RunEnvironment:
    """The machine, its load and the options under which a benchmark runs."""

    taken_at: str  # ISO 8601, UTC
    quick: bool
    plan: TurnPlan
    threads: int
    load_average: tuple[float, float, float]  # before it began
    machine: Fingerprint


@dataclass(frozen=True)
class Benchmark:
    """Cases by name, how to run one of them, and which times are compared."""

    name: str
    cases: tuple[str, ...]  # all that there are
    default_cases: tuple[str, ...]
    run: Callable[[str, RunEnvironment, ProgressObserver], CaseResult]
    ratios: tuple[Ratio, ...]
    notes: tuple[str, ...]  # for whoever reads the document
    packages: tuple[str, ...] = ()  # peers, whose versions stand in the document
    prints_ratios: bool = True


_NOTES = (
    "Times are seconds per step: one sample per round, the mean of the steps of a turn; quartiles are over rounds.",
    "Contestants share the tables of a case (on huge pages where there are any); those with a tracker share others.",
    "Ids are converted beforehand to the type that each contestant takes.",
)


def model_benchmark(
    name: str,
    default_cases: tuple[str, ...],
    make_groups: Callable[[Case, SharedTables], Sequence[Group]],
    ratios: tuple[Ratio, ...],
    packages: tuple[str, ...] = (),
    amortized: tuple[Amortized, ...] = (),
) -> Benchmark:
    """Makes a benchmark whose contestants work on the models of CASES, in this process."""

    def run(case_name: str, environment: RunEnvironment, observe: ProgressObserver) -> CaseResult:
        case = CASES[case_name]()
        return run_case(quick(case) if environment.quick else case, make_groups, amortized, environment.plan, observe)

    return Benchmark(name, tuple(CASES), default_cases, run, ratios, _NOTES, packages)
