"""`dqrm-cpu doctor`: what this machine has, what is wrong for training on it, and how to mend it."""

import argparse
import json
import shutil
import textwrap

from dqrm_cpu.cli.options import add_config_options, config_from_args
from dqrm_cpu.cli.parser import Subparsers
from dqrm_cpu.doctor.finding import Finding, Verdict

_NARROWEST = 60
_WIDEST = 100

_EPILOG = """\
examples:
  dqrm-cpu doctor                       is this machine fit for the demo?
  dqrm-cpu doctor --preset terabyte     does the Terabyte model fit in memory?
  dqrm-cpu doctor --json                the same for a program

The exit status is 1 if a check fails, otherwise 0."""


def add_parser(subparsers: Subparsers) -> None:
    """The checks depend on the run, so it takes a run's options."""
    about = "check this machine: CPU, threads, memory, OpenMP, MPI, GPU"
    parser = subparsers.add_parser("doctor", help=about, description=f"{about[0].upper()}{about[1:]}.", epilog=_EPILOG)
    parser.add_argument("--json", action="store_true", help="print the findings as a JSON list")
    add_config_options(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the findings; 1 when one of them fails."""
    config = config_from_args(args)
    from dqrm_cpu.doctor.examine import examine

    findings = examine(config)
    if args.json:
        print(json.dumps([finding.as_dict() for finding in findings], indent=2))
    else:
        width = max(_NARROWEST, min(_WIDEST, shutil.get_terminal_size().columns))
        print(format_findings(findings, width))
    return int(any(finding.verdict is Verdict.FAIL for finding in findings))


def format_findings(findings: list[Finding], width: int) -> str:
    """A table: check, verdict, what was found, and the mend on a line of its own; then one line that sums up."""
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
