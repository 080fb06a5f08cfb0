"""An argparse parser whose help comes in pages: the common options first, each section of settings when asked for."""

import argparse
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from dqrm_cpu.base.files import begins_with
from dqrm_cpu.base.precision import FP32, INT8, PRODUCTS
from dqrm_cpu.config.load import nearest

Subparsers: TypeAlias = "argparse._SubParsersAction[Parser]"

_WIDEST_HELP = 100
_HELP_COLUMN = 34
_ALL_PAGES = "all"


class UsageError(Exception):
    """The command line itself is wrong: exit status 2."""


def require_replaceable(option: str, path: Path | None, kind: str, mark: bytes, at: int = 0) -> None:
    """Refuses to write over a file that is no former result, which has `mark` at its byte `at`."""
    if path is not None and path.exists() and not begins_with(path, mark, at):
        what = "a folder" if path.is_dir() else f"there already, and no {kind}"
        raise UsageError(f"{option} {path} is {what}; give another name")


def whole_number(minimum: int, maximum: int = 2**63 - 1) -> Callable[[str], int]:
    """Makes the type of an option: a whole number from `minimum` to `maximum`."""

    def parse(text: str) -> int:
        digits = text.strip().replace("_", "").replace(",", "")
        if not digits.isdecimal() or not minimum <= int(digits) <= maximum:
            upper = "on" if maximum == 2**63 - 1 else f"to {maximum:,}"
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {minimum} {upper}")
        return int(digits)

    return parse


def add_products_option(parser: "Parser", of_what: str) -> None:
    """Adds `--products`, the arithmetic of exported files."""
    parser.add_argument(
        "--products",
        metavar="HOW",
        choices=PRODUCTS,
        default=FP32,
        help=f"{of_what}: {FP32} (default), as exact as the run, or\n"
        f"{INT8}: several times quicker by compiled code, what layers read rounded to 8 bits",
    )


class Parser(argparse.ArgumentParser):
    """A parser without abbreviations: a new option must never change what an old command line means."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", _Formatter)
        super().__init__(*args, **{**kwargs, "add_help": False, "allow_abbrev": False})
        self._pages: dict[str, argparse._ArgumentGroup] = {}
        self._help = self.add_argument("-h", "--help", action=_HelpAction, help="show this help and exit")

    def add_page(self, name: str, about: str) -> argparse._ArgumentGroup:
        """Adds a group of options that `--help NAME` shows and plain help only names."""
        self._help.nargs, self._help.metavar = "?", "SECTION"
        self._help.help = "show this help, or that of a section, or --help all of it"
        page = self.add_argument_group(f"[{name}] {about[:1].lower()}{about[1:].removesuffix('.')}")
        self._pages[name] = page
        return page

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuses what is no choice in the words of a setting that has choices."""
        if action.choices is not None and value not in action.choices:
            choices = list(map(str, action.choices))
            near = nearest(str(value), choices)
            hint = f"; nearest is {near}" if near else ""
            name = action.option_strings[-1] if action.option_strings else action.metavar or action.dest
            raise UsageError(f"{name} {value}: no such choice{hint}; allowed: {' | '.join(choices)}")

    def error(self, message: str) -> NoReturn:
        """Raises; argparse would print its usage and exit, here the caller reports."""
        raise UsageError(f"{message}; {self.prog} --help lists the options")

    def format_help(self) -> str:
        """Formats the first page: what every run may want, the names of the other pages, examples."""
        formatter = self._get_formatter()
        formatter.add_text(f"usage: {self.usage_line()}")
        formatter.add_text(self.description)
        for group in self._action_groups:
            if group not in self._pages.values() and group._group_actions:
                _add_group(formatter, group)
        if self._pages:
            formatter.add_text(self._page_list())
        formatter.add_text(self.epilog)
        return formatter.format_help()

    def format_page(self, name: str) -> str:
        """Formats the help of one page, or of all."""
        if name == _ALL_PAGES:
            return "\n".join([self.format_help(), *(self.format_page(page) for page in self._pages)])
        formatter = self._get_formatter()
        _add_group(formatter, self._pages[name])
        return formatter.format_help()

    def page_names(self) -> tuple[str, ...]:
        """Returns what `--help` may be followed by."""
        return (*self._pages, _ALL_PAGES) if self._pages else ()

    def usage_line(self) -> str:
        """Writes the command with what it takes, in one line."""
        if any(isinstance(action, argparse._SubParsersAction) for action in self._actions):
            return f"{self.prog} COMMAND [options]"
        formatter = self._get_formatter()
        words = [formatter._format_args(action, str(action.metavar)) for action in self._get_positional_actions()]
        settings = ["[--SECTION.KEY VALUE ...]"] if self._pages else []
        return " ".join([self.prog, *words, "[options]", *settings])

    def _page_list(self) -> str:
        titles = [str(page.title).partition(" ") for page in self._pages.values()]
        lines = [f"  {name:<8} {about}" for name, _, about in titles]
        return "\n".join([f"settings by section; `{self.prog} --help SECTION` lists them:", *lines])


def _add_group(formatter: argparse.HelpFormatter, group: argparse._ArgumentGroup) -> None:
    formatter.start_section(group.title)
    formatter.add_text(group.description)
    formatter.add_arguments(group._group_actions)
    formatter.end_section()


class _Formatter(argparse.HelpFormatter):
    """A help formatter that keeps line breaks, and is as wide as the terminal up to 100 columns."""

    def __init__(self, prog: str) -> None:
        width = min(_WIDEST_HELP, shutil.get_terminal_size().columns)
        super().__init__(prog, max_help_position=_HELP_COLUMN, width=width)

    def _format_action(self, action: argparse.Action) -> str:
        if isinstance(action, argparse._SubParsersAction):
            # Just the commands, without a line for the placeholder above them.
            return "".join(self._format_action(command) for command in action._get_subactions())
        return super()._format_action(action)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return [line for part in text.splitlines() for line in textwrap.wrap(part, width)]

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(f"{indent}{line}".rstrip() for line in text.splitlines())


class _HelpAction(argparse.Action):
    """The option --help, which may be followed by the name of a page."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:  # noqa: A002
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        assert isinstance(parser, Parser)
        if not values:
            parser._print_message(parser.format_help(), sys.stdout)
        elif values in parser.page_names():
            parser._print_message(parser.format_page(values), sys.stdout)
        else:
            pages = ", ".join(parser.page_names())
            raise UsageError(f"--help {values}: no such section; there is help on {pages}")
        parser.exit()
