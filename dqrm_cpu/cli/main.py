"""The `dqrm-cpu` command: finds the sub-command, and turns what goes wrong into one line and an exit status."""

import argparse
import contextlib
import importlib
import io
import os
import select
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TextIO, cast

from dqrm_cpu import __version__
from dqrm_cpu.base.signals import StoppedBySignal
from dqrm_cpu.cli.parser import Parser, Subparsers, UsageError
from dqrm_cpu.comm.transports.launch import detect_launch
from dqrm_cpu.config.load import nearest, option_mistake
from dqrm_cpu.config.schema import SECTIONS
from dqrm_cpu.errors import ConfigError, DqrmError

COMMANDS = (
    "train",
    "evaluate",
    "predict",
    "compress",
    "export",
    "verify",
    "serve",
    "prepare",
    "data",
    "reproduce",
    "report",
    "profile",
    "doctor",
    "bench",
    "plan",
    "completion",
)
"""Each is a module of dqrm_cpu.cli."""

_PROGRAM = "dqrm-cpu"
_FIRST_STEPS = """\
first steps:
  dqrm-cpu train                                     a small INT4 model on generated clicks, in a minute
  dqrm-cpu prepare log.csv --suggest schema.toml     your own log: describe its columns, look that over, then
  dqrm-cpu prepare log.csv --schema schema.toml --out data/mine
  dqrm-cpu train --data data/mine --tune 8 --run-dir runs/mine
  dqrm-cpu evaluate runs/mine
  dqrm-cpu predict runs/mine new.csv --out scores.csv

dqrm-cpu help COMMAND says more, with examples."""
_STATUS_ERROR = 1
_STATUS_USAGE = 2
_STATUS_INTERRUPTED = 130
_STATUS_BROKEN_PIPE = 141


class Command(Protocol):
    """The interface of a sub-command's module. It imports torch only inside `run`: help is instant."""

    def add_parser(self, subparsers: Subparsers) -> None:
        """Adds a parser named after the command."""

    def run(self, args: argparse.Namespace) -> int:
        """Does the work; returns the exit status."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    _open_standard_streams()
    try:
        status = _run_command(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        _flush_or_discard(sys.stderr)
        return status
    except UsageError as error:
        return _report_mistake(error, True, _STATUS_USAGE)
    except DqrmError as error:
        if os.environ.get("DQRM_TRACEBACK") == "1":
            raise
        is_usage = isinstance(error, ConfigError)
        return _report_mistake(error, is_usage or error.unanimous, _STATUS_USAGE if is_usage else _STATUS_ERROR)
    except KeyboardInterrupt:
        return _report("interrupted", _STATUS_INTERRUPTED, label="")
    except StoppedBySignal as stop:
        return _report(f"ended at once by {stop}; what was saved before is whole", stop.status, label="")
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        # The interpreter flushes standard output once more at exit, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _STATUS_BROKEN_PIPE
    except (OSError, MemoryError) as error:
        # Of the machine rather than of the program: whatever asked for it could not say more.
        if os.environ.get("DQRM_TRACEBACK") == "1":
            raise
        return _report(_machine_failure(error), _STATUS_ERROR)


def _run_command(argv: list[str]) -> int:
    if not argv or argv[0] == "help":
        argv = _help_asked(argv[1:])
    if argv and not argv[0].startswith("-") and argv[0] not in COMMANDS:
        near = nearest(argv[0], COMMANDS)
        hint = f"; nearest is {near}" if near else ""
        raise UsageError(f"unknown command {argv[0]}{hint}; there are {', '.join(COMMANDS)}")
    if argv and argv[0].startswith("-") and argv[0] not in ("-h", "--help", "--version"):
        raise UsageError(f"{argv[0]} stands before a command; first name one of {', '.join(COMMANDS)}")
    # Only the chosen command is imported; help lists them all.
    names = argv[:1] if argv and argv[0] in COMMANDS else COMMANDS
    modules = {name: cast(Command, importlib.import_module(f"dqrm_cpu.cli.{name}")) for name in names}
    parser, subparsers = _root_parser()
    for module in modules.values():
        module.add_parser(subparsers)
    try:
        args, unknown = parser.parse_known_args(argv)
    except SystemExit as stop:  # --help and --version were printed
        return int(stop.code or 0)
    if unknown:
        raise UsageError(_unknown_arguments(unknown, subparsers.choices[args.command]))
    return modules[args.command].run(args)


def _help_asked(words: list[str]) -> list[str]:
    """Returns the arguments that show help on a command, and on a section of its settings or an action of its."""
    return [*words, "--help"] if words[:1] == ["data"] else [*words[:1], "--help", *words[1:]]


def _root_parser() -> tuple[Parser, Subparsers]:
    parser = Parser(prog=_PROGRAM, description="Train DLRM click models in INT4 on CPUs.")
    parser.add_argument("--version", action="version", version=f"{_PROGRAM} {__version__}", help="show the version")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    parser.epilog = _FIRST_STEPS
    return parser, subparsers


def _unknown_arguments(unknown: list[str], parser: Parser) -> str:
    mistakes = []
    for position, argument in enumerate(unknown):
        if argument.startswith("-"):
            option, _, _ = argument.partition("=")
            following = unknown[position + 1 : position + 2]
            value = [text for text in following if not text.startswith("-") and "=" not in argument]
            mistakes.append(f"{' '.join([argument, *value])}: {_option_mistake(option, parser)}")
    if not mistakes:
        hint = f"{parser.prog} --help says what is"
        if parser.page_names():
            is_data = (Path(unknown[0]) / "manifest.json").exists()
            hint = (
                f"a data set is given as --data {unknown[0]}"
                if is_data
                else "settings are given as --SECTION.KEY VALUE"
            )
        mistakes = [f"{' '.join(unknown)}: not expected here; {hint}"]
    return mistakes[0] if len(mistakes) == 1 else f"{len(mistakes)} mistakes:\n  " + "\n  ".join(mistakes)


def _option_mistake(option: str, parser: Parser) -> str:
    if option.partition("=")[0] == "--run-dir":
        return f"unknown option; the run is given without one: {parser.usage_line()}"
    actions = [action for action in parser._actions if "--help" not in action.option_strings]
    known = [name for action in actions for name in action.option_strings]
    if parser.page_names():
        return option_mistake(option, known)
    near = nearest(option, known)
    if option.partition(".")[0].removeprefix("--") in SECTIONS:
        return f"no option of {parser.prog}, which takes no settings; {parser.prog} --help lists the options"
    return f"unknown option; nearest is {near}" if near else f"unknown option; {parser.prog} --help lists the options"


def _report_mistake(error: Exception, unanimous: bool, status: int) -> int:
    """Reports once what every rank runs into: they share the command line, or agreed on the error."""
    return status if unanimous and _rank() > 0 else _report(error, status)


def _machine_failure(error: OSError | MemoryError) -> str:
    if isinstance(error, MemoryError):
        return f"out of memory{f' ({error})' if str(error) else ''}; use a machine with more of it, or a smaller model"
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}; check the file, its folder and the disk (DQRM_TRACEBACK=1 says more)"


def _rank() -> int:
    try:
        return detect_launch(os.environ).rank
    except DqrmError:
        return 0


def _report(message: object, status: int, label: str = "error: ") -> int:
    _flush_or_discard(sys.stdout)
    # A closed terminal or a full disk: the status still says how it ended.
    with contextlib.suppress(OSError):
        print(f"{_PROGRAM}: {label}{message}", file=sys.stderr)
    _flush_or_discard(sys.stderr)
    return status


def _flush_or_discard(stream: TextIO) -> None:
    """Flushes, or discards what cannot be written: at exit Python would try again, and end with a status of its own."""
    try:
        stream.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _open_standard_streams() -> None:
    """Opens streams that were closed (2>&-), whose numbers must not fall to the next opened file."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError):  # what a terminal cannot show, as with LANG=C, ends nothing
            cast(io.TextIOWrapper, stream).reconfigure(errors="backslashreplace")


def _reader_is_gone() -> bool:
    """Tells whether it was standard output that broke, rather than a socket between ranks."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
