"""A TOML file as dotted keys, with the line of each; whatever the file holds, this takes no longer than reading it."""

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dqrm_cpu.base.decode import MOST_KEY_PARTS, MOST_TOML_BYTES, long_key_at
from dqrm_cpu.base.files import read_regular
from dqrm_cpu.config.schema import SECTIONS
from dqrm_cpu.errors import ConfigError

# Enough to find the ends of statements in a text that is known to be TOML.
_TOKEN = re.compile(
    r'''"""(?:\\.|[^\\])*?"""(?:"{0,2})|'{3}.*?'{3}(?:'{0,2})|"(?:\\.|[^"\\\n])*"|'[^'\n]*'|#[^\n]*|[\[\]{}]|\n''',
    re.DOTALL,
)


@dataclass(frozen=True)
class TomlSource:
    """A TOML file that was read; `leaves` maps dotted keys to values as tomllib reads them."""

    path: Path
    text: str
    leaves: dict[str, object]

    def locate(self, key: str) -> str:
        """Names a key by file:line."""
        line = self._lines.get(key)
        return f"{self.path}:{line}" if line else str(self.path)

    @cached_property
    def _lines(self) -> Mapping[str, int]:
        return lines_of(self.text)


class MissingFileError(ConfigError):
    """The file that was asked for does not exist."""


class BrokenFileError(ConfigError):
    """The file exists and is no TOML."""


def read_toml(path: Path) -> TomlSource:
    """Reads and flattens; ConfigError when the file is missing, unreadable or no TOML."""
    try:
        text = read_regular(path, MOST_TOML_BYTES).decode()
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file; give the path of a TOML file to --config") from None
    except OSError as error:
        raise BrokenFileError(f"{path}: cannot be read ({error.strerror}); --config takes a TOML file") from None
    except UnicodeDecodeError as error:
        raise BrokenFileError(f"{path}: byte {error.start} is not UTF-8; TOML files are UTF-8 text") from None
    # So lines count as an editor shows them.
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    long_key = long_key_at(text)
    if long_key is not None:
        line = text.count("\n", 0, long_key) + 1
        raise BrokenFileError(
            f"{path}:{line}: a key of more than {MOST_KEY_PARTS} parts; a key reads `section.name` at most"
        )
    try:
        leaves = dict(_leaves(tomllib.loads(text)))
        # A section that nothing stands in, as of a file that was cut, sets nothing.
        return TomlSource(
            path, text, {key: value for key, value in leaves.items() if value != {} or key not in SECTIONS}
        )
    except RecursionError:
        raise BrokenFileError(f"{path}: values nested too deeply; a setting is a value or a list of numbers") from None
    except ValueError as error:  # also of integers with thousands of digits
        raise BrokenFileError(_syntax_message(path, text, str(error))) from None


def lines_of(text: str) -> dict[str, int]:
    """Finds the line, from 1, where the statement begins that sets each dotted key of a valid text.

    tomllib keeps no positions, so every statement is parsed by itself, below the header of its section.
    """
    lines: dict[str, int] = {}
    section = ""
    for line, statement in _statements(text):
        tree = tomllib.loads(statement)
        if statement.lstrip().startswith("["):
            section = "".join(f"{name}." for name in _path(tree))
            lines.setdefault(section[:-1], line)
        else:
            for key, _ in _leaves(tree, section):
                lines.setdefault(key, line)
    return lines


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Yields the statements that are not empty, each with the line where it begins."""
    start, depth, line, first_line = 0, 0, 1, 1
    for token in _TOKEN.finditer(text + "\n"):
        token_text = token[0]
        if token_text in "[{":
            depth += 1
        elif token_text in "]}":
            depth -= 1
        elif token_text == "\n" and depth == 0:
            if text[start : token.start()].strip():
                yield first_line, text[start : token.start()]
            start, first_line = token.end(), line + 1
        line += token_text.count("\n")


def _path(tree: dict[str, Any]) -> Iterator[str]:
    """Yields the names in a header: that of a table, or of an item of an array of tables."""
    while tree:
        name, value = next(iter(tree.items()))
        yield name
        tree = value if isinstance(value, dict) else {}


def _leaves(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, object]]:
    leaves: list[tuple[str, object]] = []
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            leaves += _leaves(value, f"{prefix}{name}.")
        else:
            leaves.append((prefix + name, value))
    return leaves


def _syntax_message(path: Path, text: str, reason: str) -> str:
    at_line = re.search(r" \(at line (\d+), column (\d+)\)", reason)
    line = int(at_line.group(1)) if at_line else text.count("\n") + 1
    problem = re.sub(r" \(at .*\)", "", reason)
    return (
        f"{path}:{line}: not valid TOML: {problem[:1].lower()}{problem[1:]}; a line reads `key = value` or `[section]`"
    )
