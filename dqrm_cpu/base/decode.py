"""Reads JSON and TOML that somebody else may have written: bounded in size and depth, and checked against a type.

    manifest = decoded(read_json(path, most_bytes=64 << 20), Document)

Whatever is wrong becomes an UnreadableError whose text is a clause for an error message: "is no JSON (...)".
"""

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import msgspec

from dqrm_cpu.base.files import read_regular

T = TypeVar("T")

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
"""The values that JSON has: scalars, and sequences and mappings of them."""

MOST_BYTES = 64 << 20
"""The limit of a metadata file, more than any of ours has: a manifest of 100,000 shards is 15 MB."""

MOST_TOML_BYTES = 1 << 20
"""The limit of a TOML file: settings of 10,000 tables take a tenth of it."""

MOST_KEY_PARTS = 32
"""The limit of a dotted key in TOML: tomllib's time grows with the square of its parts, and ours have two."""

_SHOWN = 200
_KEY_PART = r"""(?:[A-Za-z0-9_-]++|"[^"\n]*+"|'[^'\n]*+')"""
# Possessive, and begun only where a word begins: in time proportional to the text, whatever it is.
_LONG_KEY = re.compile(rf"(?<![A-Za-z0-9_-])(?:{_KEY_PART}[ \t]*+\.[ \t]*+){{{MOST_KEY_PARTS}}}")


class UnreadableError(Exception):
    """A file is not what it should be; the text says how, and stands well behind the name of the file."""


def read_json(path: Path, most_bytes: int = MOST_BYTES) -> Any:
    """Reads the JSON document in a regular file; FileNotFoundError and PermissionError pass through as they are."""
    try:
        content = read_regular(path, most_bytes)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        raise
    except OSError as error:
        raise UnreadableError(f"cannot be read ({error.strerror or error})") from error
    return parse_json(content)


def parse_json(content: bytes | str) -> Any:
    """Parses JSON, with NaN and infinities as Python writes them; refuses deep nesting and endless numbers."""
    try:
        document = json.loads(content)
        if _escaped_surrogate(content):
            json.dumps(document, ensure_ascii=False).encode()  # half a pair is no text that could be shown or written
        return document
    except RecursionError:
        raise UnreadableError("is nested too deeply") from None
    except ValueError as error:  # also of bytes that are no UTF-8, and of integers with thousands of digits
        raise UnreadableError(f"is no JSON ({_short(error)})") from error


def _escaped_surrogate(content: bytes | str) -> bool:
    return b"\\ud" in content.lower() if isinstance(content, bytes) else "\\ud" in content.lower()


def read_toml(path: Path) -> dict[str, Any]:
    """Reads the TOML document in a regular file; FileNotFoundError and PermissionError pass through as they are."""
    try:
        content = read_regular(path, MOST_TOML_BYTES)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        raise
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        raise UnreadableError(f"cannot be read ({getattr(error, 'strerror', None) or error})") from error
    return parse_toml(content)


def parse_toml(content: bytes) -> dict[str, Any]:
    """Parses TOML; refuses deep nesting, endless numbers and keys of very many parts, which take quadratic time."""
    try:
        text = content.decode().removeprefix("\ufeff")
        if long_key_at(text) is not None:
            raise UnreadableError(f"has a key of more than {MOST_KEY_PARTS} parts")
        return tomllib.loads(text)
    except RecursionError:
        raise UnreadableError("is nested too deeply") from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UnreadableError(f"is no text in UTF-8, in line {line}; save it as UTF-8") from error
    except ValueError as error:  # also of integers with thousands of digits
        raise UnreadableError(f"is not TOML: {_short(error)}") from error


def long_key_at(text: str) -> int | None:
    """Finds where a dotted key of more than MOST_KEY_PARTS parts begins in TOML, which must not be parsed then."""
    match = _LONG_KEY.search(text)
    return match.start() if match else None


def decoded(document: Any, kind: type[T]) -> T:
    """Returns the document as `kind`: a type, dataclass or msgspec.Struct, nothing converted and nothing left out.

    Keys that `kind` does not know are passed over: a newer version may have added them within the same format.
    """
    try:
        return msgspec.convert(document, kind, strict=True)
    except RecursionError:
        raise UnreadableError("is nested too deeply") from None
    except (msgspec.ValidationError, OverflowError, UnicodeError) as error:  # also of half a pair of surrogates
        raise UnreadableError(f"lacks or mistakes a field ({_short(error)})") from error


def _short(error: Exception) -> str:
    text = str(error)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
