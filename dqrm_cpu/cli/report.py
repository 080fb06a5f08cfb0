"""`dqrm-cpu report`: runs as one HTML file, curves, phases, ranks, bytes, weights, scales, and what to change."""

import argparse
import sys
from pathlib import Path

from dqrm_cpu.cli.parser import Subparsers, UsageError, require_replaceable

_PAGE = "report.html"

_EPILOG = """\
examples:
  dqrm-cpu report runs/a                          writes runs/a/report.html
  dqrm-cpu report runs/a runs/b --out ab.html     two runs over each other
  dqrm-cpu report runs/a --png figures            every figure for papers and slides, too

How to read it: docs/profiling.md."""


def add_parser(subparsers: Subparsers) -> None:
    """Adds the command's options."""
    about = "show runs as one HTML file that opens anywhere"
    parser = subparsers.add_parser("report", help=about, description=f"{about[0].upper()}{about[1:]}.", epilog=_EPILOG)
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="run folders, also of runs still going on")
    parser.add_argument(
        "--out", metavar="FILE", type=Path, help=f"default: {_PAGE} in the run's folder, or here for several"
    )
    parser.add_argument("--png", metavar="DIR", type=Path, help="also write each figure as PNG into this folder")


def run(args: argparse.Namespace) -> int:
    """Prints what it wrote, and days that follow each other as a table."""
    from dqrm_cpu.cli.data_tables import table
    from dqrm_cpu.report.build import build_report
    from dqrm_cpu.train.working import Working

    twice = next((path for path in args.runs if args.runs.count(path) > 1), None)
    if twice is not None:
        raise UsageError(f"{twice} is named twice")
    require_replaceable("--out", args.out, "page", b"<!")
    default = args.runs[0] / _PAGE if len(args.runs) == 1 else Path(_PAGE)
    with Working("reading the logs and writing the page"):
        built = build_report(args.runs, args.out or default, args.png)
    for text in built.warnings:
        print(f"warning: {text}", file=sys.stderr)
    if built.days:
        print(table(built.days, left=1))
    for path in built.files:
        print(path)
    return 0
