"""Layouts of other data sets, described by a small TOML file.

    delimiter = ","
    header = true
    quotes = true
    label = "click"
    integers = ["hour"]
    decimals = ["price"]
    hashes = []
    categories = ["site_id", "app_id"]
    keys = ["request_id"]

A table `[multi]` says which categories have several values in a cell, such as genres = "|".
`positive = 4` beside it makes labels of 4 and more clicks; without it they are 0 or 1. `weight` names a column that
says how often each row counts. With a header, columns
are named as in the first line of the files; without one, or from standard input, `fields` lists the names of all fields
in their order. Those that nothing mentions are ignored. `keys` are no features: `predict` carries
them along.
"""

import csv
import re
from collections import Counter
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from dqrm_cpu.base.decode import UnreadableError, read_toml
from dqrm_cpu.config.load import nearest
from dqrm_cpu.data.prepare.request import TimeSplit
from dqrm_cpu.data.prepare.row_layout import DENSE_ROLES, MOST_VALUES, Field, FieldRole, Layout
from dqrm_cpu.data.store.transform import BUCKETS, TRANSFORMS
from dqrm_cpu.errors import ConfigError

_ROLE_KEYS = {
    "integers": FieldRole.INTEGER,
    "decimals": FieldRole.DECIMAL,
    "hashes": FieldRole.HEX,
    "categories": FieldRole.TEXT,
    "keys": FieldRole.KEY,
}
_MOST_SHOWN, _MOST_COMPARED, _MOST_NAMED = 80, 1000, 30
_DELIMITERS = "\t,;|"
_LARGEST_NUMBER = 1e300
_SPLIT_KEYS = ("by", "column", "validation", "test", "order")
_BUCKETS, _MOST_BUCKETS = 32, 4096
_MULTI_KEYS = ("separator", "limit")
_LIMIT = 32
_KEYS = (
    *("delimiter", "header", "quotes", "label", "positive", "weight", "fields"),
    *_ROLE_KEYS,
    *("multi", "transforms", "split"),
)


def read_schema(path: Path, first_line: str, names: "list[str] | None" = None) -> Layout:
    """Reads a layout, for sources that begin with `first_line`, or whose columns have these names."""
    document = _document(path)
    for key in document:
        if key not in _KEYS:
            near = nearest(key, _KEYS) if len(key) <= _MOST_SHOWN else None
            hint = f"; nearest is {near}" if near else ""
            raise ConfigError(f"{path}: unknown key {_shown(key)}{hint}; there are {', '.join(_KEYS)}")
    delimiter, header = _value(path, document, "delimiter", str, "\t"), _value(path, document, "header", bool, False)
    quotes = _value(path, document, "quotes", bool, False)
    is_text = not names
    names = names or _field_names(path, document, first_line, delimiter, header)
    roles = _roles(path, document)
    split = _time_split(path, document)
    if split is not None:
        if split.column in roles:
            raise ConfigError(f"{path}: column {_shown(split.column)} stands in two places; leave it in one")
        roles[split.column] = FieldRole.TIME
    times = Counter(names)
    for name in roles:
        if times[name] > 1:
            raise ConfigError(f"{path} speaks of a column {_shown(name)}, as two fields are called")
        if name not in times:
            hint = _field_hint(name, names, delimiter, roles)
            raise ConfigError(f"{path} speaks of a column {_shown(name)} that is no field; {hint}")
    known = {name: Field(role, name) for name, role in roles.items()}
    for name, (kind, num_buckets) in _transforms(path, document, roles).items():
        known[name] = Field(roles[name], name, kind, num_buckets)
    known |= _bags(path, document, roles, between="" if quotes or not is_text else delimiter, is_text=is_text)
    fields = tuple(known.get(name, Field(FieldRole.IGNORED)) for name in names)
    if "weight" in document and not any(f.role in DENSE_ROLES and f.transform != BUCKETS for f in fields):
        raise ConfigError(f"{path}: a data set has a number beside its weight; name one in integers or decimals")
    return Layout(fields, delimiter, header, quotes, positive=_threshold(path, document))


def _field_hint(name: str, names: list[str], delimiter: str, roles: dict[str, FieldRole]) -> str:
    """Guesses why a column is not among the fields."""
    near = nearest(name, names[:_MOST_COMPARED]) if len(name) <= _MOST_SHOWN else None
    if near and near not in roles:
        return f"nearest is {_shown(near)}"
    there = ", ".join(map(_shown, names[:_MOST_NAMED])) + (", ..." if len(names) > _MOST_NAMED else "")
    other = next((one for one in _DELIMITERS if len(names) == 1 and one in names[0]), None)
    if other is not None:
        return f"the only one is {there}: is it {other!r} that stands between fields, rather than {delimiter!r}?"
    if not roles.keys() & set(names):
        return f"there are {there}; rows without a header need header = false, and `fields`"
    return f"there are {there}"


def read_time_split(path: Path) -> TimeSplit | None:
    """Reads how a schema splits rows by time; None where it does not."""
    return _time_split(path, _document(path))


def _document(path: Path) -> dict[str, Any]:
    try:
        return read_toml(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except UnreadableError as error:
        raise ConfigError(f"{path} {error}") from None


def _time_split(path: Path, document: dict[str, Any]) -> TimeSplit | None:
    table = document.get("split")
    if table is None:
        return None
    if not isinstance(table, dict) or not isinstance(table.get("column"), str) or table.get("by", "time") != "time":
        raise ConfigError(
            f'{path}: split must be a table such as {{ by = "time", column = "ts", test = "2024-01-07" }}'
        )
    for key in table:
        if key not in _SPLIT_KEYS:
            raise ConfigError(f"{path}: unknown key {_shown(key)} in split; there are {', '.join(_SPLIT_KEYS)}")
    order = table.get("order", "shuffled")
    if order not in ("shuffled", "time"):
        raise ConfigError(f"{path}: split order {_shown(order)}; there are shuffled and time")
    points = {key: _point(path, key, table[key]) for key in ("validation", "test") if key in table}
    kinds = {kind for kind, _ in points.values()}
    if len(kinds) != 1:
        raise ConfigError(f"{path}: split wants validation, test or both, both as shares, dates or numbers")
    values = {key: value for key, (_, value) in points.items()}
    first, last = values.get("validation"), values.get("test")
    are_shares = kinds == {"share"}
    if first is not None and last is not None and (first + last >= 1 if are_shares else first >= last):
        raise ConfigError(f"{path}: split wants rows to train on, and the test behind the validation in time")
    return TimeSplit(table["column"], first, last, are_shares, kinds == {"date"}, order)


def _point(path: Path, key: str, value: object) -> tuple[str, float]:
    """Reads where a part begins: a share of the rows between 0 and 1, a date, or a number."""
    if isinstance(value, float) and 0 < value < 1:
        return "share", value
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST_NUMBER:
        return "number", float(value)
    try:
        text = value if isinstance(value, str) else value.isoformat() if isinstance(value, date) else ""
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"{path}: split {key} is {_shown(value)}; want a share such as 0.1, a date such as "
            '"2024-01-06" or "2024-01-06T12:00:00Z", or a number as they stand in the column'
        ) from None
    return "date", moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()


def _transforms(path: Path, document: dict[str, Any], roles: dict[str, FieldRole]) -> dict[str, tuple[str, int]]:
    """Reads the table of transforms: for each column its kind, and how many buckets there are of it."""
    table = document.get("transforms", {})
    if not isinstance(table, dict):
        raise ConfigError(f'{path}: transforms must be a table of columns, such as {{ price = "standard" }}')
    found = {}
    for name, text in table.items():
        if roles.get(name) not in DENSE_ROLES:
            raise ConfigError(f"{path} transforms {_shown(name)}, which is none of its integers and decimals")
        kind, _, count = text.partition(":") if isinstance(text, str) else ("", "", "")
        is_count = count.isascii() and count.isdecimal() and 2 <= int(count[:9]) <= _MOST_BUCKETS
        if kind not in TRANSFORMS or (count and (kind != BUCKETS or not is_count)):
            raise ConfigError(
                f"{path}: {_shown(name)} is transformed by {_shown(text)}; there are {', '.join(TRANSFORMS)}, "
                f"and buckets:N with 2 to {_MOST_BUCKETS:,}"
            )
        found[name] = (kind, int(count or _BUCKETS) if kind == BUCKETS else 0)
    return found


def _bags(
    path: Path, document: dict[str, Any], roles: dict[str, FieldRole], *, between: str, is_text: bool
) -> dict[str, Field]:
    """Reads which categories have several values in a cell; `between` is what stands between fields, unless quoted."""
    table = document.get("multi", {})
    if not isinstance(table, dict):
        raise ConfigError(f'{path}: multi must be a table of columns, such as {{ genres = "|" }}')
    found = {}
    for name, value in table.items():
        if roles.get(name) != FieldRole.TEXT:
            raise ConfigError(f"{path}: multi speaks of {_shown(name)}, which is none of its categories")
        options = {"separator": value} if isinstance(value, str) else value
        if not isinstance(options, dict) or not set(options) <= set(_MULTI_KEYS):
            raise ConfigError(
                f"{path}: multi has {_shown(name)} = {_shown(value)}; write what stands between its values, such as "
                '"|", or { separator = "|", limit = 16 }'
            )
        separator, limit = options.get("separator", ""), options.get("limit", _LIMIT)
        if type(limit) is not int or not 1 <= limit <= MOST_VALUES:
            raise ConfigError(
                f"{path}: multi limits {_shown(name)} to {_shown(limit)} values in a cell; want 1 to {MOST_VALUES:,}"
            )
        is_known = isinstance(separator, str) and re.fullmatch(r"[ !#-~\t]?", separator) is not None
        between_values = f"{path}: multi has {_shown(separator)} between the values of {_shown(name)}"
        if not is_known or (is_text and not separator):
            raise ConfigError(f"{between_values}; want one ASCII character, such as a bar; lists of Parquet need none")
        if separator and separator == between:
            raise ConfigError(
                f"{between_values}, which also stands between fields; with quotes = true such cells may stand in quotes"
            )
        found[name] = Field(FieldRole.BAG, name, separator=separator, limit=limit)
    return found


def _threshold(path: Path, document: dict[str, Any]) -> float | None:
    value = document.get("positive")
    if value is None:
        return None
    if type(value) not in (int, float) or not abs(value) < _LARGEST_NUMBER:
        raise ConfigError(f"{path}: positive must be a number, from which on labels are clicks, not {_shown(value)}")
    return float(value)


def _field_names(path: Path, document: dict[str, Any], first_line: str, delimiter: str, header: bool) -> list[str]:
    if header and "fields" not in document:
        if not first_line:
            raise ConfigError(f"{path}: the header cannot be read ahead here; list the names of all fields in `fields`")
        names = _header_names(path, first_line, delimiter)
    else:
        names = _names(path, document, "fields")
        if not names:
            raise ConfigError(f"{path}: without a header, `fields` must list the names of all fields in their order")
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise ConfigError(f"{path}: two fields are called {_shown(twice[0])}; give every field a name of its own")
    return names


def _header_names(path: Path, first_line: str, delimiter: str) -> list[str]:
    try:
        row = next(csv.reader([first_line.rstrip("\r\n")], delimiter=delimiter), [])
    except (csv.Error, TypeError, ValueError) as error:  # TypeError, ValueError: of the delimiter
        raise ConfigError(f"{path}: the header cannot be read ({error}); check delimiter and quotes") from None
    return [name.strip() for name in row]


def _roles(path: Path, document: dict[str, Any]) -> dict[str, FieldRole]:
    label = _value(path, document, "label", str, "")
    if not label:
        raise ConfigError(f'{path} names no label; add a line such as label = "click"')
    roles = {label: FieldRole.LABEL}
    if weight := _value(path, document, "weight", str, ""):
        if weight == label:
            raise ConfigError(f"{path}: column {_shown(weight)} stands in two places; leave it in one")
        roles[weight] = FieldRole.WEIGHT
    for key, role in _ROLE_KEYS.items():
        for name in _names(path, document, key):
            if name in roles:
                raise ConfigError(f"{path}: column {_shown(name)} stands in two places; leave it in one")
            roles[name] = role
    return roles


def _names(path: Path, document: dict[str, Any], key: str) -> list[str]:
    names = document.get(key, [])
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise ConfigError(f'{path}: {key} must be a list of names, such as ["a", "b"]')
    return names


def _value(path: Path, document: dict[str, Any], key: str, kind: type, default: Any) -> Any:
    value = document.get(key, default)
    if type(value) is not kind:
        raise ConfigError(f"{path}: {key} must be {'true or false' if kind is bool else 'text'}, not {_shown(value)}")
    return value


def _shown(value: object) -> str:
    """Shortens a value for a message: what somebody else wrote may be very long."""
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
