"""`dqrm-cpu doctor`: what this machine has, what is wrong for training on it, and how to mend it."""

import argparse
import json
import shutil
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from dqrm_cpu.cli.options import add_config_options, config_from_args
from dqrm_cpu.cli.parser import Subparsers
from dqrm_cpu.doctor.finding import Finding, Verdict

if TYPE_CHECKING:
    from dqrm_cpu.config import Config

_NARROWEST = 60
_WIDEST = 100

_EPILOG = """\
examples:
  dqrm-cpu doctor                       is this machine fit for the demo?
  dqrm-cpu doctor --preset terabyte     does the Terabyte model fit in memory?
  dqrm-cpu doctor --json                the same for a program
  mpirun -n 2 dqrm-cpu doctor --job     every rank of a job, and what is between them

The exit status is 1 if a check fails, otherwise 0."""


def add_parser(subparsers: Subparsers) -> None:
    """Adds the options of a run, on which the checks depend, and those of the command."""
    about = "check this machine: CPU, threads, memory, OpenMP, MPI, GPU"
    parser = subparsers.add_parser("doctor", help=about, description=f"{about[0].upper()}{about[1:]}.", epilog=_EPILOG)
    parser.add_argument("--json", action="store_true", help="print the findings as a JSON list")
    parser.add_argument(
        "--job",
        action="store_true",
        help="started on every rank of a job: check affinity, threads, memory and clock of each,\n"
        "measure the network between them, and look whether all see the run folder",
    )
    parser.add_argument(
        "--run-dir", metavar="DIR", type=Path, default=Path("runs"), help="with --job: where runs go (default: runs)"
    )
    add_config_options(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the findings; 1 when one of them fails."""
    config = config_from_args(args)
    if args.job:
        return _run_on_ranks(config, args)
    from dqrm_cpu.doctor.machine import examine
    from dqrm_cpu.train.working import Working

    with Working("looking at this machine"):
        findings = examine(config)
    _print(findings, args)
    return _status(findings)


def _run_on_ranks(config: "Config", args: argparse.Namespace) -> int:
    """Makes the same findings on every rank; rank 0 prints them."""
    from dqrm_cpu.comm.transports.selection import open_transport
    from dqrm_cpu.doctor.job_checks import examine_job
    from dqrm_cpu.train.working import Working

    with open_transport(config.comm.transport, timeout_s=config.comm.timeout) as transport:
        with Working("measuring between the ranks", shown=transport.rank == 0):
            findings = examine_job(config, transport, args.run_dir)
        if transport.rank == 0:
            _print(findings, args)
    return _status(findings)


def _print(findings: list[Finding], args: argparse.Namespace) -> None:
    if args.json:
        print(json.dumps([finding.as_dict() for finding in findings], indent=2))
    else:
        width = max(_NARROWEST, min(_WIDEST, shutil.get_terminal_size().columns))
        print(format_findings(findings, width))


def _status(findings: list[Finding]) -> int:
    return int(any(finding.verdict is Verdict.FAIL for finding in findings))


def format_findings(findings: list[Finding], width: int) -> str:
    """Formats a table of check, verdict and finding, each mend on a line of its own; then one line that sums up."""
    checks = max(len(finding.check) for finding in findings)
    verdicts = max(len(finding.verdict.value) for finding in findings)
    indent = " " * (checks + verdicts + 4)
    lines = []
    for finding in findings:
        head = f"{finding.check:<{checks}}  {finding.verdict.value:<{verdicts}}  "
        lines += _wrap(finding.found, head, indent, width)
        if finding.mend:
            lines += _wrap(finding.mend, f"{indent}mend: ", f"{indent}      ", width)
    return "\n".join([*lines, "", _summary(findings)])


def _wrap(text: str, head: str, indent: str, width: int) -> list[str]:
    # A path or a command must survive copying: it is never broken inside a word.
    return textwrap.wrap(
        text,
        width,
        initial_indent=head,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _summary(findings: list[Finding]) -> str:
    counts = {verdict: sum(finding.verdict is verdict for finding in findings) for verdict in Verdict}
    if counts[Verdict.FAIL]:
        return "This run cannot work here as it is: mend what fails."
    if counts[Verdict.WARNING]:
        return "This run will work here; what the warnings say costs time or safety."
    return "This machine is fit for this run."
