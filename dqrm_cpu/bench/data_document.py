"""The JSON form of `bench data`, with the same frame and the same ratios as the other benchmarks'."""

from collections.abc import Iterable
from importlib import metadata
from typing import Any

from dqrm_cpu import __version__
from dqrm_cpu.bench.data import RATIOS
from dqrm_cpu.bench.data_polars import PACKAGE as POLARS
from dqrm_cpu.bench.data_run import DataEntry, DataGroupResult, DataResult
from dqrm_cpu.bench.document import Circumstances, document_frame, ratio_tree

_PACKAGES = (POLARS, "isal", "numba", "numpy", "torch")

_NOTES = (
    "Every round of every contestant is a process of its own; contestants take turns. Seconds are those of the work, "
    "with first calls, what numba imports at its first kernel among them, without others; peak_bytes is the "
    "process' VmHWM, imports and mapped files included.",
    "A ratio is the numerator's median over the denominator's; below 1 the numerator is faster.",
    "Files are in the page cache. Contestants that prepare are checked to have found the same rows, clicks, categories "
    "and logarithms.",
)


def data_document(around: Circumstances, results: Iterable[DataResult]) -> dict[str, Any]:
    """Plain values; `ratios` has them as key, case, variant."""
    results = tuple(results)
    return {
        **document_frame("data", _NOTES, around),
        "versions": {"dqrm-cpu": __version__, "python": around.machine.python, **_versions()},
        "cases": {result.case.name: _case(result) for result in results},
        "ratios": ratio_tree(RATIOS, {result.case.name: result.medians_s() for result in results}),
    }


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def _case(result: DataResult) -> dict[str, Any]:
    return {
        "rows": result.case.rows,
        "text_bytes": result.text_bytes,
        "gzip_bytes": result.gzip_bytes,
        "groups": {found.group.name: _group(found) for found in result.groups},
    }


def _group(found: DataGroupResult) -> dict[str, Any]:
    return {
        "contestants": {entry.contestant.name: _entry(entry) for entry in found.entries},
        "absent": dict(found.absent),
    }


def _entry(entry: DataEntry) -> dict[str, Any]:
    lower_s, upper_s = entry.timing.quartiles_s
    return {
        "about": entry.contestant.about,
        "rows": entry.rows,
        "median_s": entry.timing.median_s,
        "lower_quartile_s": lower_s,
        "upper_quartile_s": upper_s,
        "samples_s": list(entry.timing.samples),
        "rows_per_s": entry.rows_per_s,
        "peak_bytes": entry.peak_bytes,
    }
