"""`dqrm-cpu bench`: times steps, kernels, preparation, exchanges, lookups or the server against other ways to do it."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from dqrm_cpu.cli.bench_table import format_case, format_changes
from dqrm_cpu.cli.parser import Subparsers, UsageError, require_replaceable, whole_number

if TYPE_CHECKING:
    from dqrm_cpu.lab.bench.harness.benchmark import Benchmark, RunEnvironment
    from dqrm_cpu.lab.bench.harness.result import CaseResult
    from dqrm_cpu.lab.bench.harness.runner import BenchProgress

_KINDS = ("step", "kernels", "data", "exchange", "serve", "score", "lookup", "spans", "scaling")
_ROUNDS, _QUICK_ROUNDS = 15, 3
_DATA_ROUNDS = 5  # a round of a million rows takes about fifteen seconds
_SCALING_ROUNDS = 5  # of each number of cores, case and precision
_TURN_S, _QUICK_TURN_S = 0.15, 0.005

_EPILOG = """\
examples:
  dqrm-cpu bench step --cases kaggle_128          one training step, ours and others'
  dqrm-cpu bench kernels --json kernels.json      every kernel, figures kept
  dqrm-cpu bench data --cases rows_1m             preparing raw clicks, beside polars
  dqrm-cpu bench exchange --json exchange.json    gradients between two ranks, every wire and transport
  dqrm-cpu bench lookup --threads 1               rows of an INT4 table, beside PyTorch and FBGEMM
  dqrm-cpu bench serve --cases rows_64            200 requests a second of 64 rows, for a minute
  dqrm-cpu bench scaling --json a.json --page a.html  1 to all cores: what a machine is worth
  dqrm-cpu bench step --quick                     a minute's look whether all of it works

Contestants take turns; those that are not installed say so. What to make of the figures:
docs/benchmarks.md."""


def add_parser(subparsers: Subparsers) -> None:
    """Adds the command and its options."""
    about = "time steps, kernels, preparation and exchange against others"
    parser = subparsers.add_parser("bench", help=about, description=f"{about[0].upper()}{about[1:]}.", epilog=_EPILOG)
    parser.add_argument(
        "what",
        metavar="WHAT",
        choices=_KINDS,
        help="step: whole training steps; kernels: one by one; data: prepare, predict; exchange: gradients between "
        "ranks; score: a model file; lookup: rows of one INT4 table; serve: the server under a load of requests; "
        "spans: what timing costs; scaling: steps on 1 to all cores and sockets",
    )
    parser.add_argument(
        "--cases",
        metavar="NAME,...",
        help="demo_128, kaggle_128, kaggle_2048, terabyte_2048; data: rows_1m, "
        "rows_8m, predict_1m; exchange: terabyte_d64, terabyte_d16; serve: rows_64, rows_64_fast, rows_1; "
        "score: kaggle_1, kaggle_64, kaggle_2048; lookup: d16_bag1, d16_bag20, d64_bag1, d64_bag20, and _cached; "
        "scaling: kaggle_2048, terabyte_2048, mlperf_32768",
    )
    parser.add_argument("--transports", metavar="NAME,...", help="of bench exchange (default: those that work here)")
    parser.add_argument(
        "--rounds",
        metavar="N",
        type=whole_number(1),
        help=f"turns of each contestant (default: {_ROUNDS}, data: {_DATA_ROUNDS}, "
        f"scaling: {_SCALING_ROUNDS}, quick: {_QUICK_ROUNDS})",
    )
    parser.add_argument(
        "--threads",
        metavar="N",
        type=whole_number(1),
        help="threads, of bench scaling the most cores (default: every core it may use)",
    )
    parser.add_argument("--quick", action="store_true", help="small tables, few rounds; times mean nothing")
    parser.add_argument(
        "--against",
        metavar="FILE",
        type=Path,
        help="also say what got slower since the figures that --json wrote there",
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the figures, machine and versions")
    parser.add_argument("--page", metavar="FILE", type=Path, help="of bench scaling: also write a page of charts")


def run(args: argparse.Namespace) -> int:
    """Prints a table per case; the exit status does not judge."""
    if args.json is not None and not args.json.parent.is_dir():
        raise UsageError(f"--json {args.json}: there is no folder {args.json.parent}; make it first")
    require_replaceable("--json", args.json, "result of a benchmark", b"{")
    require_replaceable("--page", args.page, "page", b"<!")
    if args.page is not None and args.what != "scaling":
        raise UsageError(f"--page {args.page}: bench {args.what} makes no page; bench scaling does")
    if args.transports is not None and args.what != "exchange":
        raise UsageError(f"--transports {args.transports}: bench {args.what} has no ranks; bench exchange has")
    from dqrm_cpu.lab.bench.harness.against import changes_since, read_earlier
    from dqrm_cpu.lab.bench.harness.document import benchmark_document

    # Before hours of timing: whatever is wrong with the file is said at once, and --json may replace it.
    earlier = None if args.against is None else read_earlier(args.against, args.what)
    environment = _environment(args)
    benchmark = _benchmark(args, environment)
    cases = _names(args.cases, benchmark.default_cases)
    for name in cases:
        if name not in benchmark.cases:
            known = ", ".join(benchmark.cases)
            raise UsageError(f"--cases {name}: no such case of bench {args.what}; there are {known}")
    results = []
    for name in cases:
        results.append(benchmark.run(name, environment, _show))
        print(format_case(benchmark, results[-1]), flush=True)
        if args.json is not None:
            # After each case: what is measured is not lost when a later one is interrupted.
            args.json.write_text(json.dumps(benchmark_document(benchmark, environment, results), indent=1) + "\n")
        if args.page is not None:
            _write_page(results, environment, args.page)
    if earlier is not None:
        print(format_changes(earlier, changes_since(earlier, results), earlier.differences(environment)))
    return 0


def _environment(args: argparse.Namespace) -> "RunEnvironment":
    import torch

    from dqrm_cpu.base.hardware import fingerprint
    from dqrm_cpu.lab.bench.harness.benchmark import RunEnvironment
    from dqrm_cpu.lab.bench.harness.runner import TurnPlan

    machine = fingerprint()
    threads = args.threads or machine.usable_cores
    torch.set_num_threads(threads)
    usual = {"data": _DATA_ROUNDS, "scaling": _SCALING_ROUNDS}.get(args.what, _ROUNDS)
    rounds = args.rounds or (_QUICK_ROUNDS if args.quick else usual)
    plan = TurnPlan(rounds, _QUICK_TURN_S if args.quick else _TURN_S)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return RunEnvironment(now, args.quick, plan, threads, os.getloadavg(), machine)


def _benchmark(args: argparse.Namespace, environment: "RunEnvironment") -> "Benchmark":
    from dqrm_cpu.lab.bench.data.data_benchmark import DATA
    from dqrm_cpu.lab.bench.exchange.exchange_benchmark import RANKS, TRANSPORTS, exchange_benchmark, usable_transports
    from dqrm_cpu.lab.bench.kernels.kernel_benchmark import KERNELS
    from dqrm_cpu.lab.bench.lookup.lookup_benchmark import LOOKUP
    from dqrm_cpu.lab.bench.scoring.score_benchmark import SCORE
    from dqrm_cpu.lab.bench.serve.serve_benchmark import SERVE
    from dqrm_cpu.lab.bench.step.span_benchmark import SPANS
    from dqrm_cpu.lab.bench.step.step_benchmark import STEP
    from dqrm_cpu.lab.scaling.scaling_benchmark import scaling_benchmark

    if args.what == "scaling":
        return scaling_benchmark(environment)
    if args.what != "exchange":
        kinds = (STEP, KERNELS, DATA, SCORE, LOOKUP, SERVE, SPANS)
        return next(kind for kind in kinds if kind.name == args.what)
    transports = _names(args.transports, usable_transports())
    for name in transports:
        if name not in TRANSPORTS:
            raise UsageError(f"--transports {name}: no such transport; there are {', '.join(TRANSPORTS)}")
    return exchange_benchmark(transports, args.threads or max(1, environment.machine.usable_cores // RANKS))


def _write_page(results: "Sequence[CaseResult]", environment: "RunEnvironment", out: Path) -> None:
    from dqrm_cpu.lab.scaling.scaling_benchmark import machine_bindings
    from dqrm_cpu.lab.scaling.scaling_page import write_scaling_page

    write_scaling_page(results, machine_bindings(environment), environment, out)


def _names(given: str | None, default: tuple[str, ...]) -> tuple[str, ...]:
    return default if given is None else tuple(name.strip() for name in given.split(","))


def _show(progress: "BenchProgress") -> None:
    """Prints one line that changes on a terminal; in a file, one line for whatever begins."""
    line = f"{progress.case}, {progress.doing}"
    if not progress.total or not sys.stderr.isatty():
        if progress.done == 0:
            rounds = f": {progress.total - progress.warmup} rounds, and {progress.warmup} before them to warm up"
            print(f"{line}{rounds if progress.total else ''}", file=sys.stderr, flush=True)
        return
    timed = progress.done - progress.warmup
    where = f"round {timed} of {progress.total - progress.warmup}" if timed >= 0 else "warming up"
    line = f"\r\x1b[K{line}: {where}"
    print(line if progress.done < progress.total else "\r\x1b[K", end="", file=sys.stderr, flush=True)
