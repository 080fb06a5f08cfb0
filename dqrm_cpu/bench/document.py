"""The JSON form of a benchmark: figures, what was compared with what, and the machine and versions behind them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from types import MappingProxyType
from typing import Any

from dqrm_cpu import __version__
from dqrm_cpu.bench.benchmark import Benchmark, Ratio
from dqrm_cpu.bench.fbgemm import PACKAGE as FBGEMM
from dqrm_cpu.bench.result import CaseResult, Comparison, Entry, GroupResult, Samples, compare
from dqrm_cpu.bench.timing import Plan
from dqrm_cpu.profile.hardware import Fingerprint

FORMAT = 1

_NOTES = (
    "Times are seconds per step: one sample per round, the mean of the steps of a turn; quartiles are over rounds.",
    "A ratio is the numerator's median over the denominator's; below 1 the numerator is faster.",
    "by_round is the median of the ratios of each round by itself.",
    "Contestants share the tables of a case (on huge pages where there are any); those with a tracker share others.",
    "Ids are converted beforehand to the type that each contestant takes.",
)


@dataclass(frozen=True)
class Circumstances:
    """Under what a benchmark ran."""

    taken_at: str  # ISO 8601, UTC
    quick: bool
    plan: Plan
    threads: int
    load_average: tuple[float, float, float]  # before it began
    machine: Fingerprint


def benchmark_document(benchmark: Benchmark, around: Circumstances, results: Iterable[CaseResult]) -> dict[str, Any]:
    """Plain values; `ratios` has them as key, case, variant."""
    results = tuple(results)
    return {
        **document_frame(benchmark.name, _NOTES, around),
        "versions": _versions(around.machine),
        "cases": {result.case.name: _case(result) for result in results},
        "ratios": ratio_tree(
            benchmark.ratios,
            {result.case.name: result.medians_s() for result in results},
            {result.case.name: result.samples_s() for result in results},
        ),
    }


def document_frame(name: str, notes: Sequence[str], around: Circumstances) -> dict[str, Any]:
    """What every benchmark's JSON begins with."""
    return {
        "format": FORMAT,
        "benchmark": name,
        "notes": list(notes),
        "taken_at": around.taken_at,
        "quick": around.quick,
        "rounds": around.plan.rounds,
        "turn_s": around.plan.turn_s,
        "threads": around.threads,
        "load_average": list(around.load_average),
        "machine": around.machine.as_dict(),
    }


def _versions(machine: Fingerprint) -> dict[str, str | None]:
    packages = {package.name: package.version for package in machine.packages}
    try:
        packages[FBGEMM] = metadata.version(FBGEMM)
    except metadata.PackageNotFoundError:
        packages[FBGEMM] = None
    return {"dqrm-cpu": __version__, "python": machine.python, **packages}


def _case(result: CaseResult) -> dict[str, Any]:
    model = result.case.config.model
    return {
        "about": result.case.about,
        "batch_size": result.case.batch_size,
        "tables": len(model.table_rows),
        "rows": sum(model.table_rows),
        "embedding_dim": model.embedding_dim,
        "table_bytes": result.case.table_bytes,
        "batches_in_pool": result.num_batches,
        "groups": {group.name: _group(group) for group in result.groups},
        "derived": {
            entry.name: {"about": entry.about, "median_s": entry.median_s, "formula": entry.formula}
            for entry in result.derived
        },
    }


def _group(group: GroupResult) -> dict[str, Any]:
    return {"contestants": {entry.name: _entry(entry) for entry in group.entries}, "absent": dict(group.absent)}


def _entry(entry: Entry) -> dict[str, Any]:
    lower_s, upper_s = entry.timing.quartiles_s
    return {
        "about": entry.about,
        "median_s": entry.median_s,
        "lower_quartile_s": lower_s,
        "upper_quartile_s": upper_s,
        "samples_s": list(entry.timing.samples),
        "steps_per_turn": entry.timing.steps_per_turn,
    }


def ratio_tree(
    ratios: Sequence[Ratio],
    medians_s: Mapping[str, Mapping[str, float]],
    samples_s: Mapping[str, Samples] = MappingProxyType({}),
) -> dict[str, dict[str, dict[str, Any]]]:
    """By key, case and variant, from the medians of each case's contestants, and from their rounds if given."""
    tree: dict[str, dict[str, dict[str, Any]]] = {}
    for case, medians in medians_s.items():
        for comparison in compare(ratios, medians, samples_s.get(case)):
            ratio = comparison.ratio
            tree.setdefault(ratio.key, {}).setdefault(case, {})[ratio.variant] = _comparison(comparison)
    return tree


def _comparison(comparison: Comparison) -> dict[str, Any]:
    ratio = comparison.ratio
    figures: dict[str, Any] = {
        "ratio": comparison.value,
        "numerator": {"name": ratio.numerator, "median_s": comparison.numerator_s},
        "denominator": {"name": ratio.denominator, "median_s": comparison.denominator_s},
    }
    if comparison.by_round is not None:
        figures["by_round"] = comparison.by_round
    if ratio.minus is not None:
        figures["minus"] = {"name": ratio.minus, "median_s": comparison.minus_s}
    return figures
