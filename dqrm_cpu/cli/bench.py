"""`dqrm-cpu bench`: times steps, kernels, preparation or exchanges against other ways to do the same."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from dqrm_cpu.cli.bench_against import earlier_of, print_changes
from dqrm_cpu.cli.bench_data import DATA_ROUNDS, run_bench_data
from dqrm_cpu.cli.bench_exchange import run_bench_exchange
from dqrm_cpu.cli.parser import Subparsers, UsageError

if TYPE_CHECKING:
    from dqrm_cpu.bench.benchmark import Benchmark
    from dqrm_cpu.bench.cases import Case
    from dqrm_cpu.bench.document import Circumstances
    from dqrm_cpu.bench.result import CaseResult, Comparison, DerivedEntry, Entry
    from dqrm_cpu.bench.run import Progress

_KINDS = ("step", "kernels", "data", "exchange", "spans")
_ROUNDS, _QUICK_ROUNDS = 15, 3
_TURN_S, _QUICK_TURN_S = 0.15, 0.005

_EPILOG = """\
examples:
  dqrm-cpu bench step --cases kaggle_128          one training step, ours and others'
  dqrm-cpu bench kernels --json kernels.json      every kernel, figures kept
  dqrm-cpu bench data --cases rows_1m             preparing raw clicks, beside polars
  dqrm-cpu bench exchange --json exchange.json    gradients between two ranks, every wire and transport
  dqrm-cpu bench step --quick                     a minute's look whether all of it works

Contestants take turns; those that are not installed say so. What to make of the figures:
docs/benchmarks.md."""


def add_parser(subparsers: Subparsers) -> None:
    """The command's options."""
    about = "time steps, kernels, preparation and exchange against others"
    parser = subparsers.add_parser("bench", help=about, description=f"{about[0].upper()}{about[1:]}.", epilog=_EPILOG)
    parser.add_argument(
        "what",
        metavar="WHAT",
        choices=_KINDS,
        help="step: whole training steps; kernels: one by one; data: prepare; exchange: gradients between ranks; "
        "spans: what timing costs",
    )
    parser.add_argument(
        "--cases",
        metavar="NAME,...",
        help="demo_128, kaggle_128, kaggle_2048, terabyte_2048; data: rows_1m, "
        "rows_8m; exchange: terabyte_d64, terabyte_d16",
    )
    parser.add_argument("--transports", metavar="NAME,...", help="of bench exchange (default: those that work here)")
    parser.add_argument(
        "--rounds",
        metavar="N",
        type=_positive,
        help=f"turns of each contestant (default: {_ROUNDS}, data: {DATA_ROUNDS}, quick: {_QUICK_ROUNDS})",
    )
    parser.add_argument("--threads", metavar="N", type=_positive, help="threads (default: every core it may use)")
    parser.add_argument("--quick", action="store_true", help="small tables, few rounds; times mean nothing")
    parser.add_argument(
        "--against",
        metavar="FILE",
        type=Path,
        help="also say what got slower since the figures that --json wrote there",
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the figures, machine and versions")


def run(args: argparse.Namespace) -> int:
    """Prints a table per case; the exit status does not judge."""
    if args.json is not None and not args.json.parent.is_dir():
        raise UsageError(f"--json {args.json}: there is no folder {args.json.parent}; make it first")
    if args.transports is not None and args.what != "exchange":
        raise UsageError(f"--transports {args.transports}: bench {args.what} has no ranks; bench exchange has")
    if args.what in ("data", "exchange"):
        return {"data": run_bench_data, "exchange": run_bench_exchange}[args.what](args, _circumstances(args))
    from dqrm_cpu.bench.against import timed_groups
    from dqrm_cpu.bench.document import benchmark_document
    from dqrm_cpu.bench.run import run_case

    benchmark = _benchmark(args.what)
    earlier = earlier_of(args, benchmark.name)
    around = _circumstances(args)
    results = []
    for case in _cases(args, benchmark):
        results.append(run_case(benchmark, case, around.plan, _show))
        print(format_case(benchmark, results[-1]), flush=True)
        if args.json is not None:
            # After each case: what is measured is not lost when a later one is interrupted.
            args.json.write_text(json.dumps(benchmark_document(benchmark, around, results), indent=1) + "\n")
    print_changes(earlier, timed_groups(results), around)
    return 0


def _benchmark(what: str) -> "Benchmark":
    from dqrm_cpu.bench.kernels import KERNELS
    from dqrm_cpu.bench.spans import SPANS
    from dqrm_cpu.bench.step import STEP

    return {"step": STEP, "kernels": KERNELS, "spans": SPANS}[what]


def _circumstances(args: argparse.Namespace) -> "Circumstances":
    import torch

    from dqrm_cpu.bench.document import Circumstances
    from dqrm_cpu.bench.timing import Plan
    from dqrm_cpu.profile.hardware import fingerprint

    machine = fingerprint()
    threads = args.threads or machine.usable_cores
    torch.set_num_threads(threads)
    usual = DATA_ROUNDS if args.what == "data" else _ROUNDS
    rounds = args.rounds or (_QUICK_ROUNDS if args.quick else usual)
    plan = Plan(rounds, _QUICK_TURN_S if args.quick else _TURN_S)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Circumstances(now, args.quick, plan, threads, os.getloadavg(), machine)


def _cases(args: argparse.Namespace, benchmark: "Benchmark") -> "list[Case]":
    from dqrm_cpu.bench.cases import CASES, quick

    names = benchmark.cases if args.cases is None else [name.strip() for name in args.cases.split(",")]
    for name in names:
        if name not in CASES:
            raise UsageError(f"--cases {name}: no such case; there are {', '.join(CASES)}")
    cases = [CASES[name]() for name in names]
    return [quick(case) for case in cases] if args.quick else cases


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _show(progress: "Progress") -> None:
    """One line that changes on a terminal; in a file, one line per group."""
    line = f"{progress.case}, {progress.group}: round {progress.done} of {progress.total}"
    if not sys.stderr.isatty():
        if progress.done == 0:
            print(f"{progress.case}, {progress.group}: {progress.total} rounds", file=sys.stderr, flush=True)
        return
    print(f"\r\x1b[K{line}" if progress.done < progress.total else "\r\x1b[K", end="", file=sys.stderr, flush=True)


def format_case(benchmark: "Benchmark", result: "CaseResult") -> str:
    """A table of all contestants, each against the baseline of its group, and the ratios of the benchmark."""
    from dqrm_cpu.bench.result import compare

    lines = [f"{result.case.name}: {result.case.about}"]
    names = [*result.medians_s(), *(name for group in result.groups for name in group.absent)]
    width = max(map(len, names), default=0)
    medians = result.medians_s()
    for group in result.groups:
        baseline_s = medians.get(group.baseline)
        heading = f"over {group.baseline}" if baseline_s else ""
        lines += ["", f"  {group.name:<{width}}  {'median':>10}  {'quartiles':>21}  {heading}".rstrip()]
        lines += [f"  {_row(entry, width, baseline_s)}" for entry in group.entries]
        if group is result.groups[-1]:
            lines += [f"  {_derived_row(entry, width, baseline_s)}" for entry in result.derived]
        lines += [f"  {name:<{width}}  absent: {reason}" for name, reason in group.absent.items()]
    compared = compare(benchmark.ratios, medians, result.samples_s())
    return "\n".join([*lines, "", *_ratio_lines(compared), ""])


def _ratio_lines(compared: "Sequence[Comparison]") -> list[str]:
    width = max((len(comparison.ratio.key) for comparison in compared), default=0)
    heading = f"  {'':<{width}}        {'medians':>7}  by round"
    return [heading, *(_ratio_line(found, width) for found in compared)] if compared else []


def _ratio_line(found: "Comparison", width: int) -> str:
    by_round = "" if found.by_round is None else f"{found.by_round:8.2f}"
    return f"  {found.ratio.key:<{width}}  {found.ratio.variant}  {found.value:7.2f}  {by_round}".rstrip()


def _row(entry: "Entry", width: int, baseline_s: float | None) -> str:
    lower_s, upper_s = entry.timing.quartiles_s
    quartiles = f"{_time(lower_s)} -{_time(upper_s)}"
    return f"{entry.name:<{width}}  {_time(entry.median_s)}  {quartiles}  {_over(entry.median_s, baseline_s)}".rstrip()


def _derived_row(entry: "DerivedEntry", width: int, baseline_s: float | None) -> str:
    return (
        f"{entry.name:<{width}}  {_time(entry.median_s)}  {'derived':>21}  {_over(entry.median_s, baseline_s)}".rstrip()
    )


def _over(median_s: float, baseline_s: float | None) -> str:
    return f"{median_s / baseline_s:.2f}" if baseline_s else ""


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:>7.3f} ms"
