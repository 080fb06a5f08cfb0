"""A TOML file as dotted keys, with the line of each."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dqrm_cpu.errors import ConfigError


@dataclass(frozen=True)
class TomlSource:
    """`leaves` maps dotted keys to values as tomllib reads them."""

    path: Path
    text: str
    leaves: dict[str, object]

    def locate(self, key: str) -> str:
        """file:line of a key. Only errors ask, so the repeated parsing is no cost to a good file."""
        return f"{self.path}:{line_of(self.text, key)}"


def read_toml(path: Path) -> TomlSource:
    """Reads and flattens; ConfigError when the file is missing, unreadable or no TOML."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the path of a TOML file to --config") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); --config takes a TOML file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8; TOML files are UTF-8 text") from None
    # pathlib has turned CRLF into LF already, so lines count as an editor shows them.
    try:
        return TomlSource(path, text, dict(_leaves(tomllib.loads(text))))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(_syntax_message(path, text, str(error))) from None


def line_of(text: str, key: str) -> int:
    """The line where the statement that sets a dotted key begins, from 1.

    tomllib keeps no positions. But every statement ends at the end of a line, so the shortest parseable beginning of
    the file that knows the key ends with its statement, and the parseable beginning before that one ends just above.
    """
    lines = text.split("\n")
    above = 0
    for count in range(1, len(lines) + 1):
        try:
            leaves = dict(_leaves(tomllib.loads("\n".join(lines[:count]))))
        except tomllib.TOMLDecodeError:
            continue
        if key in leaves:
            return above + 1
        above = count
    return len(lines)


def _leaves(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = []
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            found += _leaves(value, f"{prefix}{name}.")
        else:
            found.append((prefix + name, value))
    return found


def _syntax_message(path: Path, text: str, reason: str) -> str:
    at_line = re.search(r" \(at line (\d+), column (\d+)\)", reason)
    line = int(at_line.group(1)) if at_line else text.count("\n") + 1
    said = re.sub(r" \(at .*\)", "", reason)
    return f"{path}:{line}: not valid TOML: {said[:1].lower()}{said[1:]}; a line reads `key = value` or `[section]`"
