"""`dqrm-cpu bench data`: times and weighs the preparation of raw clicks, beside polars and what the disk allows."""

import argparse
import json
import sys
from typing import TYPE_CHECKING

from dqrm_cpu.cli.bench_against import earlier_of, print_changes
from dqrm_cpu.cli.parser import UsageError

if TYPE_CHECKING:
    from dqrm_cpu.bench.data import DataCase
    from dqrm_cpu.bench.data_run import DataEntry, DataGroupResult, DataProgress, DataResult
    from dqrm_cpu.bench.document import Circumstances

DATA_ROUNDS = 5
"""A round of a million rows takes about fifteen seconds."""


def run_bench_data(args: argparse.Namespace, around: "Circumstances") -> int:
    """Prints a table per case; the exit status does not judge."""
    from dqrm_cpu.bench.data_document import data_document
    from dqrm_cpu.bench.data_run import run_data_case, timed_groups

    earlier, results = earlier_of(args, "data"), []
    for case in _cases(args):
        results.append(run_data_case(case, around.plan.rounds, around.threads, _show))
        print(format_data_case(results[-1]), flush=True)
        if args.json is not None:
            args.json.write_text(json.dumps(data_document(around, results), indent=1) + "\n")
    print_changes(earlier, timed_groups(results), around)
    return 0


def _cases(args: argparse.Namespace) -> "list[DataCase]":
    from dqrm_cpu.bench.data import CASES, DEFAULT_CASES, QUICK_ROWS, DataCase

    names = DEFAULT_CASES if args.cases is None else [name.strip() for name in args.cases.split(",")]
    for name in names:
        if name not in CASES:
            raise UsageError(f"--cases {name}: no such case of bench data; there are {', '.join(CASES)}")
    return [DataCase(name, QUICK_ROWS) if args.quick else CASES[name] for name in names]


def _show(progress: "DataProgress") -> None:
    """One line that changes on a terminal; in a file, one for each thing that begins."""
    line = f"{progress.case}: {progress.doing}"
    if not sys.stderr.isatty():
        if progress.done == 0:
            print(line, file=sys.stderr, flush=True)
        return
    line = f"\r\x1b[K{line}, round {progress.done} of {progress.total}"
    print(line if progress.done < progress.total else "\r\x1b[K", end="", file=sys.stderr, flush=True)


def format_data_case(result: "DataResult") -> str:
    """A table of all contestants, each against the baseline of its group, and the ratios."""
    from dqrm_cpu.bench.data import RATIOS
    from dqrm_cpu.bench.result import compare

    medians_s = result.medians_s()
    lines = [
        f"{result.case.name}: {result.case.rows:,} generated rows, {result.text_bytes / 1e6:,.0f} MB of text, "
        f"{result.gzip_bytes / 1e6:,.0f} MB as gzip"
    ]
    width = max(len(c.name) for found in result.groups for c in found.group.contestants)
    for found in result.groups:
        lines += _group_lines(found, width, medians_s.get(found.group.baseline))
    compared = compare(RATIOS, medians_s)
    lines += ["", *(f"  {c.ratio.key:<20}  {c.ratio.variant:<6}  {c.value:6.2f}" for c in compared), ""]
    return "\n".join(lines)


def _group_lines(found: "DataGroupResult", width: int, baseline_s: float | None) -> list[str]:
    over = f"over {found.group.baseline}" if baseline_s and len(found.entries) > 1 else ""
    heading = f"  {found.group.name:<{width}}  {'median':>8}  {'quartiles':>17}  {'rows/s':>11}  {'peak':>8}  {over}"
    lines = ["", heading.rstrip()]
    lines += [f"  {_row(entry, width, baseline_s if over else None)}" for entry in found.entries]
    return lines + [f"  {name:<{width}}  absent: {reason}" for name, reason in found.absent.items()]


def _row(entry: "DataEntry", width: int, baseline_s: float | None) -> str:
    lower_s, upper_s = entry.timing.quartiles_s
    figures = (
        f"{entry.contestant.name:<{width}}  {entry.timing.median_s:>6.3f} s  {lower_s:>6.3f} - {upper_s:>6.3f} s  "
        f"{entry.rows_per_s:>11,.0f}  {entry.peak_bytes / 1e6:>5,.0f} MB"
    )
    return f"{figures}  {entry.timing.median_s / baseline_s:.2f}" if baseline_s else figures
