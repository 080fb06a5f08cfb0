"""The JSON form of `bench exchange`, with the same frame and the same ratios as the other benchmarks'."""

from collections.abc import Iterable, Mapping
from typing import Any

from dqrm_cpu import __version__
from dqrm_cpu.bench.against import TimedGroup
from dqrm_cpu.bench.document import Circumstances, document_frame, ratio_tree
from dqrm_cpu.bench.exchange import PER_TABLE, STEP_ALONE, contestant_name, ratios
from dqrm_cpu.bench.exchange_run import ExchangeEntry, ExchangeGroup, ExchangeResult

_NOTES = (
    "Times are seconds per step, those of the slowest rank: one sample per round, the mean of the steps of a turn.",
    "A ratio is the numerator's median over the denominator's; below 1 the numerator is faster.",
    "tables: from the pooled gradient that a backward leaves to the sum of all ranks. mlp: with a copy of the "
    "gradient. step: whole training steps; efficiency is the time of one rank alone over ranks times that of all.",
    "bytes_per_step is what rank 0 hands over for the other ranks: counted; computed for torch's contestants, with "
    "int64 rows. phases_s are medians on rank 0; wire includes waiting for the other ranks.",
)


def exchange_document(around: Circumstances, results: Iterable[ExchangeResult]) -> dict[str, Any]:
    """Plain values; `ratios` and `bytes_ratios` have them as key, case, variant."""
    results = tuple(results)
    transports = tuple(results[0].transports) if results else ()
    packages = {package.name: package.version for package in around.machine.packages}
    return {
        **document_frame("exchange", _NOTES, around),
        "versions": {"dqrm-cpu": __version__, "python": around.machine.python, **packages},
        "cases": {result.case: _case(result) for result in results},
        "ratios": ratio_tree(tuple(ratios(transports)), {result.case: result.medians_s() for result in results}),
        "bytes_over_sparse_int64": {result.case: bytes_over_sparse_int64(result) for result in results},
        "efficiency": {result.case: efficiencies(result) for result in results},
    }


def bytes_over_sparse_int64(result: ExchangeResult) -> dict[str, float]:
    """By contestant: its bytes over those of the same gradients in FP32 with int64 rows."""
    tables = next(group for group in result.groups if group.name == "tables")
    wanted = next((entry.bytes_in_all for entry in tables.entries if entry.name == PER_TABLE), 0.0)
    return {entry.name: entry.bytes_in_all / wanted for entry in tables.entries} if wanted else {}


def efficiencies(result: ExchangeResult) -> dict[str, float]:
    """By contestant that trains on all ranks."""
    steps = next(group for group in result.groups if group.name == "step")
    alone_s = next(entry.timing.median_s for entry in steps.entries if entry.name == STEP_ALONE)
    return {
        entry.name: alone_s / (result.ranks * entry.timing.median_s)
        for entry in steps.entries
        if entry.name != STEP_ALONE
    }


def timed_groups(results: Iterable[ExchangeResult]) -> list[TimedGroup]:
    """What an earlier benchmark is compared with."""
    return [
        TimedGroup(
            result.case,
            group.name,
            baseline(group, result.transports),
            {entry.name: entry.timing for entry in group.entries},
        )
        for result in results
        for group in result.groups
    ]


def baseline(group: ExchangeGroup, transports: Iterable[str]) -> str:
    """The contestant that a table shows the others of its group against."""
    first = next(iter(transports))
    return {"tables": PER_TABLE, "mlp": contestant_name(first, "mlp_fp32"), "step": STEP_ALONE}[group.name]


def _case(result: ExchangeResult) -> dict[str, Any]:
    return {
        "about": result.about,
        "ranks": result.ranks,
        "transports": dict(result.transports),
        "groups": {group.name: _group(group) for group in result.groups},
    }


def _group(group: ExchangeGroup) -> dict[str, Any]:
    return {"contestants": {entry.name: _entry(entry) for entry in group.entries}, "absent": dict(group.absent)}


def _entry(entry: ExchangeEntry) -> Mapping[str, Any]:
    lower_s, upper_s = entry.timing.quartiles_s
    return {
        "about": entry.about,
        "median_s": entry.timing.median_s,
        "lower_quartile_s": lower_s,
        "upper_quartile_s": upper_s,
        "samples_s": list(entry.timing.samples),
        "steps_per_turn": entry.timing.steps_per_turn,
        "bytes_per_step": dict(entry.bytes_per_step),
        "phases_s": dict(entry.phases_s),
    }
