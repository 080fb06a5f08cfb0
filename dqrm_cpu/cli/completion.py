"""`dqrm-cpu completion SHELL`: a script with which a shell completes commands, options and their choices."""

import argparse
import importlib
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from dqrm_cpu.cli.parser import Parser, Subparsers
from dqrm_cpu.config.schema import SETTINGS

if TYPE_CHECKING:
    from dqrm_cpu.cli.main import Command

_EPILOG = """\
examples:
  source <(dqrm-cpu completion bash)              in ~/.bashrc
  source <(dqrm-cpu completion zsh)               in ~/.zshrc, behind compinit
  dqrm-cpu completion fish > ~/.config/fish/completions/dqrm-cpu.fish

The script knows the options of this version and starts no process; write it anew after an upgrade."""

_BASH = """\
_dqrm_cpu() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words=
    if ((COMP_CWORD == 1)); then
        words={commands}
    else
        case "${{COMP_WORDS[1]}} $before" in
{values}
        *)
            if [[ $word == -* ]]; then
                case "${{COMP_WORDS[1]}}" in
{options}
                esac
            fi ;;
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _dqrm_cpu dqrm-cpu
"""

_ZSH_HEAD = "autoload -U +X bashcompinit && bashcompinit\n"


class _Option(NamedTuple):
    names: tuple[str, ...]
    choices: tuple[str, ...]
    takes_value: bool
    about: str


def add_parser(subparsers: Subparsers) -> None:
    """Adds the command's options."""
    about = "write the script that completes commands in a shell"
    parser = subparsers.add_parser(
        "completion", help=about, description=f"{about[0].upper()}{about[1:]}.", epilog=_EPILOG
    )
    parser.add_argument("shell", metavar="SHELL", choices=("bash", "zsh", "fish"), help="bash | zsh | fish")


def run(args: argparse.Namespace) -> int:
    """Prints the script."""
    parsers = _parsers()
    print(_fish(parsers) if args.shell == "fish" else _ZSH_HEAD * (args.shell == "zsh") + _bash(parsers), end="")
    return 0


def _parsers() -> dict[str, Parser]:
    from dqrm_cpu.cli.main import COMMANDS

    subparsers: Subparsers = Parser(prog="dqrm-cpu").add_subparsers()
    for name in COMMANDS:
        module: Command = importlib.import_module(f"dqrm_cpu.cli.{name}")
        module.add_parser(subparsers)
    return dict(subparsers.choices)


def _options(parser: Parser) -> Iterator[_Option]:
    for action in parser._actions:
        setting = SETTINGS.get(action.dest)
        choices = action.choices or (setting.choices if setting else ())
        about = (action.help or "").partition("\n")[0].replace("%%", "%")
        yield _Option(tuple(action.option_strings), tuple(map(str, choices)), action.nargs != 0, about)


def _first_words(parser: Parser) -> tuple[str, ...]:
    """Returns what may stand behind a command: its actions, or the choices of its first argument."""
    return next((option.choices for option in _options(parser) if not option.names and option.choices), ())


def _bash(parsers: dict[str, Parser]) -> str:
    values = [f"        'help help') words={_quoted(parsers)} ;;"]
    options = []
    for command, parser in parsers.items():
        found = list(_options(parser))
        if words := _first_words(parser):
            values.append(f"        '{command} {command}') words={_quoted(words)} ;;")
        for option in found:
            if option.names and option.choices:
                pattern = "|".join(f"'{command} {name}'" for name in option.names)
                values.append(f"        {pattern}) words={_quoted(option.choices)} ;;")
        names = [name for option in found for name in option.names]
        options.append(f"                {command}) words={_quoted(names)} ;;")
    commands = _quoted([*parsers, "help"])
    return _BASH.format(commands=commands, values="\n".join(values), options="\n".join(options))


def _fish(parsers: dict[str, Parser]) -> str:
    lines = [f"complete -c dqrm-cpu -n __fish_use_subcommand -f -a {_quoted([*parsers, 'help'])}"]
    lines.append(f"complete -c dqrm-cpu -n '__fish_seen_subcommand_from help' -f -a {_quoted(parsers)}")
    for command, parser in parsers.items():
        begin = f"complete -c dqrm-cpu -n '__fish_seen_subcommand_from {command}'"
        if words := _first_words(parser):
            lines.append(f"{begin} -f -a {_quoted(words)}")
        for option in _options(parser):
            long = [name.removeprefix("--") for name in option.names if name.startswith("--")]
            if long:
                value = f" -x -a {_quoted(option.choices)}" if option.choices else " -r" * option.takes_value
                lines.append(f"{begin} -l {long[-1]}{value} -d {shlex.quote(option.about)}")
    return "\n".join(lines) + "\n"


def _quoted(words: "dict[str, Parser] | tuple[str, ...] | list[str]") -> str:
    return shlex.quote(" ".join(words))
