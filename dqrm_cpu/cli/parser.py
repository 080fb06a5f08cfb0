"""An argparse parser whose help comes in pages: the common options first, each section of settings when asked for."""

import argparse
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Any, NoReturn, TypeAlias

Subparsers: TypeAlias = "argparse._SubParsersAction[Parser]"

_WIDEST_HELP = 100
_HELP_COLUMN = 34
_ALL_PAGES = "all"


class UsageError(Exception):
    """The command line itself is wrong: exit status 2."""


class Parser(argparse.ArgumentParser):
    """Abbreviations are off: a new option must never change what an old command line means."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", _Formatter)
        super().__init__(*args, **{**kwargs, "add_help": False, "allow_abbrev": False})
        self._pages: dict[str, argparse._ArgumentGroup] = {}
        self._help = self.add_argument("-h", "--help", action=_HelpAction, help="show this help and exit")

    def add_page(self, name: str, about: str) -> argparse._ArgumentGroup:
        """A group of options that `--help NAME` shows and plain help only names."""
        self._help.nargs, self._help.metavar = "?", "SECTION"
        self._help.help = "show this help, or that of a section, or --help all of it"
        page = self.add_argument_group(f"[{name}] {about[:1].lower()}{about[1:].removesuffix('.')}")
        self._pages[name] = page
        return page

    def error(self, message: str) -> NoReturn:
        """argparse would print its usage and exit; here the caller reports."""
        raise UsageError(f"{message}; {self.prog} --help lists the options")

    def format_help(self) -> str:
        """The first page: what every run may want, the names of the other pages, examples."""
        formatter = self._get_formatter()
        formatter.add_text(f"usage: {self._usage_line()}")
        formatter.add_text(self.description)
        for group in self._action_groups:
            if group not in self._pages.values() and group._group_actions:
                _add_group(formatter, group)
        if self._pages:
            formatter.add_text(self._page_list())
        formatter.add_text(self.epilog)
        return formatter.format_help()

    def format_page(self, name: str) -> str:
        """The help of one page, or of all."""
        if name == _ALL_PAGES:
            return "\n".join([self.format_help(), *(self.format_page(page) for page in self._pages)])
        formatter = self._get_formatter()
        _add_group(formatter, self._pages[name])
        return formatter.format_help()

    def page_names(self) -> tuple[str, ...]:
        """What `--help` may be followed by."""
        return (*self._pages, _ALL_PAGES) if self._pages else ()

    def _usage_line(self) -> str:
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
    """Keeps line breaks, and is as wide as the terminal up to 100 columns."""

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
    """--help [PAGE]"""

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
