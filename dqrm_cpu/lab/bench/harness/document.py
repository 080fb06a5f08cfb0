"""The JSON form of a benchmark: figures, what was compared with what, and the machine and versions behind them."""

from collections.abc import Iterable
from dataclasses import asdict
from importlib import metadata
from typing import Any

from dqrm_cpu import __version__
from dqrm_cpu.lab.bench.harness.benchmark import Benchmark, RunEnvironment
from dqrm_cpu.lab.bench.harness.result import CaseResult, Comparison, ContestantResult, GroupResult, compare

FORMAT = 1

_NOTES = (
    "A ratio is the numerator's median over the denominator's; below 1 the numerator is faster.",
    "by_round is the median of the ratios of each round by itself.",
)


def benchmark_document(
    benchmark: Benchmark, environment: RunEnvironment, results: Iterable[CaseResult]
) -> dict[str, Any]:
    """Returns plain values; `ratios` has them as key, case, variant, and each summary as case, contestant."""
    document: dict[str, Any] = {
        "format": FORMAT,
        "benchmark": benchmark.name,
        "notes": [*benchmark.notes, *_NOTES],
        "taken_at": environment.taken_at,
        "quick": environment.quick,
        "rounds": environment.plan.rounds,
        "turn_s": environment.plan.turn_s,
        "threads": environment.threads,
        "load_average": list(environment.load_average),
        "machine": environment.machine.as_dict(),
        "versions": _versions(benchmark, environment),
        "cases": {},
        "ratios": {},
    }
    for result in results:
        document["cases"][result.name] = {
            "about": result.about,
            **result.facts,
            "groups": {group.name: group_document(group) for group in result.groups},
            "derived": {
                figure.name: {"about": figure.about, "median_s": figure.median_s, "formula": figure.formula}
                for figure in result.derived
            },
        }
        for comparison in compare(benchmark.ratios, result.medians_s(), result.samples_s()):
            of_case = document["ratios"].setdefault(comparison.ratio.key, {}).setdefault(result.name, {})
            of_case[comparison.ratio.variant] = _comparison(comparison)
        for name, figures in result.summaries.items():
            document.setdefault(name, {})[result.name] = dict(figures)
    return document


def group_document(group: GroupResult) -> dict[str, Any]:
    """Returns the figures of a group's contestants, and why others were absent."""
    return {"contestants": {entry.name: _entry(entry) for entry in group.entries}, "absent": dict(group.absent)}


def _versions(benchmark: Benchmark, environment: RunEnvironment) -> dict[str, str | None]:
    versions = {package.name: package.version for package in environment.machine.packages}
    for package in benchmark.packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {"dqrm-cpu": __version__, "python": environment.machine.python, **versions}


def _entry(entry: ContestantResult) -> dict[str, Any]:
    lower_s, upper_s = entry.timing.quartiles_s
    figures = {
        "about": entry.about,
        "rows": entry.rows,
        "median_s": entry.timing.median_s,
        "lower_quartile_s": lower_s,
        "upper_quartile_s": upper_s,
        "samples_s": list(entry.timing.samples),
        "steps_per_turn": entry.timing.steps_per_turn,
        "rows_per_s": entry.rows_per_s,
        "peak_bytes": entry.peak_bytes,
        "bytes_per_step": entry.bytes_per_step,
        "phases_s": entry.phases_s,
        "load": None if entry.load is None else asdict(entry.load),
    }
    return {name: figure for name, figure in figures.items() if figure is not None}


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
