"""Layouts of other data sets, described by a small TOML file.

    delimiter = ","
    header = true
    quotes = true
    label = "click"
    integers = ["hour"]
    decimals = ["price"]
    hashes = []
    categories = ["site_id", "app_id"]

With a header, columns are named as in the first line of the files; without one, or from standard input, `fields` lists
the names of all fields in their order. Those that nothing mentions are ignored.
"""

import csv
from collections import Counter
from pathlib import Path
from typing import Any

from dqrm_cpu.base.decode import UnreadableError, read_toml
from dqrm_cpu.config.names import nearest
from dqrm_cpu.data.prepare.layout import Field, Layout, Role
from dqrm_cpu.errors import ConfigError

_ROLE_KEYS = {
    "integers": Role.INTEGER,
    "decimals": Role.DECIMAL,
    "hashes": Role.HEX,
    "categories": Role.TEXT,
}
_MOST_SHOWN, _MOST_COMPARED = 80, 1000
_KEYS = ("delimiter", "header", "quotes", "label", "fields", *_ROLE_KEYS)


def read_schema(path: Path, first_line: str, names: "list[str] | None" = None) -> Layout:
    """The layout that a file describes, for sources whose first line is this, or whose columns have these names."""
    try:
        said = read_toml(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except UnreadableError as error:
        raise ConfigError(f"{path} {error}") from None
    for key in said:
        if key not in _KEYS:
            near = nearest(key, _KEYS) if len(key) <= _MOST_SHOWN else None
            hint = f"; nearest is {near}" if near else ""
            raise ConfigError(f"{path}: unknown key {shown(key)}{hint}; there are {', '.join(_KEYS)}")
    delimiter, header = _value(path, said, "delimiter", str, "\t"), _value(path, said, "header", bool, False)
    quotes = _value(path, said, "quotes", bool, False)
    names = names or _field_names(path, said, first_line, delimiter, header)
    roles = _roles(path, said)
    times = Counter(names)
    for name in roles:
        if times[name] > 1:
            raise ConfigError(f"{path} speaks of a column {shown(name)}, as two fields are called")
        if name not in times:
            near = nearest(name, names[:_MOST_COMPARED]) if len(name) <= _MOST_SHOWN else None
            hint = f"; nearest is {shown(near)}" if near else ""
            raise ConfigError(f"{path} speaks of a column {shown(name)} that is no field{hint}")
    fields = tuple(Field(roles.get(name, Role.IGNORED), name if name in roles else "") for name in names)
    return Layout(fields, delimiter, header, quotes)


def _field_names(path: Path, said: dict[str, Any], first_line: str, delimiter: str, header: bool) -> list[str]:
    if header and "fields" not in said:
        if not first_line:
            raise ConfigError(f"{path}: the header cannot be read ahead here; list the names of all fields in `fields`")
        names = _header_names(path, first_line, delimiter)
    else:
        names = _names(path, said, "fields")
        if not names:
            raise ConfigError(f"{path}: without a header, `fields` must list the names of all fields in their order")
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise ConfigError(f"{path}: two fields are called {shown(twice[0])}; give every field a name of its own")
    return names


def _header_names(path: Path, first_line: str, delimiter: str) -> list[str]:
    try:
        row = next(csv.reader([first_line.rstrip("\r\n")], delimiter=delimiter), [])
    except (csv.Error, TypeError, ValueError) as error:  # TypeError, ValueError: of the delimiter
        raise ConfigError(f"{path}: the header cannot be read ({error}); check delimiter and quotes") from None
    return [name.strip() for name in row]


def _roles(path: Path, said: dict[str, Any]) -> dict[str, Role]:
    label = _value(path, said, "label", str, "")
    if not label:
        raise ConfigError(f'{path} names no label; add a line such as label = "click"')
    roles = {label: Role.LABEL}
    for key, role in _ROLE_KEYS.items():
        for name in _names(path, said, key):
            if name in roles:
                raise ConfigError(f"{path}: column {shown(name)} stands in two places; leave it in one")
            roles[name] = role
    return roles


def _names(path: Path, said: dict[str, Any], key: str) -> list[str]:
    names = said.get(key, [])
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise ConfigError(f'{path}: {key} must be a list of names, such as ["a", "b"]')
    return names


def _value(path: Path, said: dict[str, Any], key: str, kind: type, default: Any) -> Any:
    value = said.get(key, default)
    if type(value) is not kind:
        raise ConfigError(f"{path}: {key} must be {'true or false' if kind is bool else 'text'}, not {shown(value)}")
    return value


def shown(value: object) -> str:
    """A value for a message: what somebody else wrote may be very long."""
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
