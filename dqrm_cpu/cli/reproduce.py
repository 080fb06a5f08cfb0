"""`dqrm-cpu reproduce`: the paper's tables and figures, ours beside the paper's."""

import argparse
import math
import shlex
import signal
import sys
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from dqrm_cpu.base.wording import counted
from dqrm_cpu.cli.options import tell
from dqrm_cpu.cli.parser import Subparsers, UsageError, whole_number
from dqrm_cpu.comm.transports.launch import detect_launch
from dqrm_cpu.config.load import nearest

if TYPE_CHECKING:
    from dqrm_cpu.lab.reproduce.experiments.definition import Experiment
    from dqrm_cpu.lab.reproduce.outcome import RunResult
    from dqrm_cpu.lab.reproduce.plan import Job, PlannedExperiment, ReproduceRequest

_SYNTHETIC, _MOVIELENS = "synthetic", "movielens"

_ABOUT = "Runs the paper's tables and figures and writes ours beside the paper's: Markdown, CSV, plots, one HTML page."

_EPILOG = """what it does:
  Each experiment is a handful of settings, each trained with several seeds. The checkpoint is chosen on
  validation; test is scored there and at the last step; the tables show means, deviations and the
  difference from the baseline seed by seed. Runs lie in OUT/runs, named by what decides their figures:
  experiments share them, and the same command again only does what is missing. Ctrl-C saves first.

examples:
  dqrm-cpu reproduce --list                            all experiments, and how long each takes
  dqrm-cpu reproduce table3a                           eleven methods on generated clicks, three seeds
  dqrm-cpu reproduce table3a --scale smoke             in a few minutes: does everything work?
  dqrm-cpu reproduce pareto --seeds 5                  AUC against bytes, each row tuned on validation
  dqrm-cpu reproduce deadzone --data movielens         needs pip install --no-deps recbole==1.2.1
  dqrm-cpu reproduce table2 --scale paper --data data/kaggle --seeds 1
  dqrm-cpu reproduce all                               everything, and OUT/index.html"""


def add_parser(subparsers: Subparsers) -> None:
    """Adds the command's options."""
    parser = subparsers.add_parser(
        "reproduce", help="run the paper's tables and figures", description=_ABOUT, epilog=_EPILOG
    )
    positive = whole_number(1)
    parser.add_argument("names", metavar="NAME", nargs="*", help="an experiment, several, or all")
    parser.add_argument(
        "--list", action="store_true", help="show the experiments with their estimated CPU time, and exit"
    )
    parser.add_argument(
        "--data",
        metavar="DATA",
        default=_SYNTHETIC,
        help="synthetic: generated clicks (default) | movielens: MovieLens-100k out of the recbole package |\n"
        "DIR: what dqrm-cpu prepare wrote, such as Criteo's",
    )
    parser.add_argument(
        "--scale",
        metavar="SCALE",
        default="small",
        help="small: minutes a table (default) | paper: the paper's sizes, days | smoke: seconds a run",
    )
    parser.add_argument("--seeds", metavar="N", type=positive, default=3, help="seeds 1 to N of each (default: 3)")
    parser.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("reproduced"), help="results and runs (default: reproduced)"
    )
    parser.add_argument("--threads", metavar="N", type=positive, default=0, help="threads (default: every core)")


def run(args: argparse.Namespace) -> int:
    """Prints a Markdown table for each experiment."""
    import os

    if detect_launch(os.environ).size > 1:
        raise UsageError("reproduce runs in one process and simulates ranks where it needs them; leave out mpirun")
    if args.out.is_file():
        raise UsageError(f"--out {args.out} is a file; give a folder")
    experiments = _experiments(args)
    request = _request(args)
    from dqrm_cpu.lab.reproduce.plan import plan

    if args.list:
        with TemporaryDirectory() as folder:  # for data sets that a plan makes
            print(_listing(plan(experiments, replace(request, out=Path(folder)))))
        return 0
    return _run(plan(experiments, request), request)


def _run(planned: "list[PlannedExperiment]", request: "ReproduceRequest") -> int:
    from dqrm_cpu.api.ranks import gathered_environment, opened_transport
    from dqrm_cpu.base.lock import FolderLock
    from dqrm_cpu.comm.transport import SingleTransport
    from dqrm_cpu.errors import ConfigError
    from dqrm_cpu.lab.reproduce.plan import jobs_of
    from dqrm_cpu.lab.reproduce.runner import JobContext, Stopped, run_jobs
    from dqrm_cpu.report.paper import load_matplotlib

    load_matplotlib()  # before hours of training rather than after
    jobs = jobs_of(planned)
    request.out.mkdir(parents=True, exist_ok=True)
    terminal = _Terminal()
    context = JobContext(
        request.out, gathered_environment(SingleTransport()), partial(opened_transport, note=tell), terminal
    )
    try:
        refusal = f"another dqrm-cpu reproduce works in {request.out}; wait for it, or give another --out"
        with FolderLock(request.out, ".lock", refusal, ConfigError):
            results = run_jobs(jobs, context)
    finally:
        terminal.close()
    if isinstance(results, Stopped):
        print(f"stopped by {results.signal}; everything is saved, the same command goes on", file=sys.stderr)
        return 128 + getattr(signal, results.signal, signal.SIGINT)
    _write(planned, results, request)
    return 0


def _write(planned: "list[PlannedExperiment]", results: "dict[str, RunResult]", request: "ReproduceRequest") -> None:
    from dqrm_cpu.base.files import replace_file
    from dqrm_cpu.errors import TrainingError
    from dqrm_cpu.lab.reproduce.figures import figures_of
    from dqrm_cpu.lab.reproduce.results import html_page, results_page, write_tables
    from dqrm_cpu.report.paper import png

    written = write_tables(planned, results, request.out)
    command = f"dqrm-cpu {shlex.join(sys.argv[1:])}"
    out = request.out
    for one in planned:
        for figure in figures_of(one, results, out):
            replace_file(out / f"{figure.key}.png", [png(figure)], TrainingError)
    replace_file(out / "results.md", [results_page(written, request, command, _machine()).encode()], TrainingError)
    replace_file(out / "index.html", [html_page(written, results, request, command).encode()], TrainingError)
    for made in written:
        print(made.markdown())
    print(f"written: {out}/index.html, results.md, and .md, .csv, .png of each", file=sys.stderr)


def _machine() -> str:
    from dqrm_cpu.base.hardware import fingerprint

    machine = fingerprint()
    return f"{counted(machine.usable_cores, 'core')} of {machine.cpu_model}"


def _experiments(args: argparse.Namespace) -> "list[Experiment]":
    from dqrm_cpu.lab.reproduce.experiments.catalogue import ALL, EXPERIMENTS

    if not args.names and not args.list:
        raise UsageError(f"which experiment? {', '.join(EXPERIMENTS)} or {ALL}; --list says how long each takes")
    for name in args.names:
        if name not in (*EXPERIMENTS, ALL):
            near = nearest(name, (*EXPERIMENTS, ALL))
            hint = f"; nearest is {near}" if near else ""
            raise UsageError(f"no experiment {name}{hint}; there are {', '.join(EXPERIMENTS)} and {ALL}")
    if not args.names or ALL in args.names:
        return list(EXPERIMENTS.values())
    return [EXPERIMENTS[name] for name in dict.fromkeys(args.names)]


def _request(args: argparse.Namespace) -> "ReproduceRequest":
    from dqrm_cpu.lab.reproduce.plan import ReproduceRequest
    from dqrm_cpu.lab.reproduce.size_presets import SIZE_PRESETS

    if args.scale not in SIZE_PRESETS:
        raise UsageError(f"--scale {args.scale}: no such scale; there are {', '.join(SIZE_PRESETS)}")
    source = args.data
    if source == _MOVIELENS:
        from dqrm_cpu.data.movielens.prepare import prepared_movielens

        source = str(prepared_movielens(args.out / "data" / "movielens-100k"))
    return ReproduceRequest(SIZE_PRESETS[args.scale], source, tuple(range(1, args.seeds + 1)), args.out, args.threads)


def _listing(planned: "list[PlannedExperiment]") -> str:
    from dqrm_cpu.lab.reproduce.experiments.catalogue import ALL
    from dqrm_cpu.lab.reproduce.plan import jobs_of

    lines = [f"{'name':<12}{'runs':>6}{'about':>10}  what (CPU time of one thread, nothing done yet)"]
    for one in planned:
        jobs = jobs_of([one])
        lines.append(_listed(one.experiment.name, jobs, one.experiment.title))
    lines.append(_listed(ALL, jobs_of(planned), "all of these; runs that tables share are done once"))
    return "\n".join(lines)


def _listed(name: str, jobs: "list[Job]", title: str) -> str:
    return f"{name:<12}{len(jobs):>6}{_duration(sum(job.estimated_s for job in jobs)):>10}  {title}"


class _Terminal:
    """One line that changes on a terminal; in a log, a line for each run."""

    def __init__(self) -> None:
        self._head = ""
        self._changes = sys.stderr.isatty()

    def job_started(self, job: "Job", done: int, total: int, left_s: float) -> None:
        what = f"{job.label} ({job.compression.value})" if job.compression else job.label
        left = "" if math.isnan(left_s) else f", about {_duration(left_s)} left"
        self._head = f"[{done + 1}/{total}{left}] {what}, seed {job.seed}"
        if self._changes:
            self.job_printed("")
        else:
            print(self._head, file=sys.stderr, flush=True)

    def job_printed(self, line: str) -> None:
        if self._changes:
            print(f"\r\x1b[K{self._head}  {line}"[:160], end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leaves the line clean for what follows."""
        if self._changes:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    if seconds < 90 * 60:
        return f"{max(round(seconds / 60), 1)} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{timedelta(seconds=seconds).days} days"
