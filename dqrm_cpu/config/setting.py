"""One setting: what it means, which values it takes, and how a text or a TOML value becomes one."""

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar, cast

T = TypeVar("T")

Value = bool | int | float | str | tuple[int, ...] | tuple[float, ...]

_METADATA_KEY = "setting"
_LARGEST_INT = 2**63 - 1


class Kind(Enum):
    """The types that a setting can have."""

    BOOL = "true or false"
    INT = "integer"
    FLOAT = "number"
    STR = "text"
    INTS = "integers"
    FLOATS = "numbers"


class BadValueError(ValueError):
    """The value does not fit the setting; the message says how, not where."""


@dataclass(frozen=True)
class Setting:
    """Range and help of one field. `above` is a minimum that is itself excluded."""

    help: str
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    choices: tuple[str | int, ...] = ()


def setting(
    default: T,
    help: str,  # noqa: A002  # argparse's word for the same thing
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    choices: tuple[str | int, ...] = (),
) -> T:
    """A dataclass field that carries its Setting."""
    metadata = {_METADATA_KEY: Setting(help, minimum, maximum, above, choices)}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Entry:
    """A setting in its place: `key` is dotted, as in quant.scale_period."""

    key: str
    kind: Kind
    setting: Setting

    @property
    def section(self) -> str:
        """The TOML table that it stands in; empty at top level."""
        return self.key.rpartition(".")[0]

    @property
    def name(self) -> str:
        return self.key.rpartition(".")[2]

    @property
    def option(self) -> str:
        """The name on the command line."""
        return "--" + self.key.replace("_", "-")

    def describe(self) -> str:
        """The values that are allowed, for help and errors."""
        if self.setting.choices:
            return " | ".join(str(choice) for choice in self.setting.choices)
        limits = self._limits()
        if self.kind in (Kind.INTS, Kind.FLOATS):
            return f"{self.kind.value}, each {limits}" if limits else self.kind.value
        return f"{self.kind.value}, {limits}" if limits else self.kind.value

    def _limits(self) -> str:
        low, high, above = self.setting.minimum, self.setting.maximum, self.setting.above
        if low is not None and high is not None:
            return f"{low:,} to {high:,}"
        if above is not None:
            return f"above {above:,}" if high is None else f"above {above:,}, at most {high:,}"
        return "" if low is None else f"{low:,} or more"

    def from_text(self, text: str) -> Value:
        """What was typed on a command line."""
        return self.from_value(_parse_text(self.kind, text.strip()))

    def from_value(self, value: object) -> Value:
        """A value of a TOML file, or an already typed one."""
        typed = _typed(self.kind, value)
        for item in typed if isinstance(typed, tuple) else (typed,):
            self._check(item)
        return typed

    def _check(self, item: bool | int | float | str) -> None:
        choices = self.setting.choices
        if choices and item not in choices:
            raise BadValueError("no such choice")
        if not isinstance(item, str) and not self._in_range(item):
            raise BadValueError("out of range")

    def _in_range(self, item: float) -> bool:
        low, high, above = self.setting.minimum, self.setting.maximum, self.setting.above
        return (
            abs(item) <= (_LARGEST_INT if isinstance(item, int) else sys.float_info.max)  # which no NaN is
            and (low is None or item >= low)
            and (high is None or item <= high)
            and (above is None or item > above)
        )


def entry_of(field: "dataclasses.Field[Any]", section: str) -> Entry:
    """The entry of a dataclass field; its kind is that of its default, which every field has."""
    key = f"{section}.{field.name}" if section else field.name
    return Entry(key, _kind_of(field.default), cast(Setting, field.metadata[_METADATA_KEY]))


def is_setting(metadata: Mapping[Any, Any]) -> bool:
    """Whether a field is a setting rather than a section of them."""
    return _METADATA_KEY in metadata


def value_text(value: Value) -> str:
    """A value as it is typed on the command line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _kind_of(default: object) -> Kind:
    kinds = {bool: Kind.BOOL, int: Kind.INT, float: Kind.FLOAT, str: Kind.STR}
    if isinstance(default, tuple):
        return Kind.FLOATS if isinstance(default[0], float) else Kind.INTS
    return kinds[type(default)]


def _parse_text(kind: Kind, text: str) -> object:
    try:
        match kind:
            case Kind.INT:
                return int(text)
            case Kind.FLOAT:
                return float(text)
            case Kind.INTS:
                return [int(part) for part in text.split(",")]
            case Kind.FLOATS:
                return [float(part) for part in text.split(",")]
            case Kind.BOOL:
                return {"true": True, "false": False}.get(text.lower(), text)
            case Kind.STR:
                return text
    except ValueError:
        raise BadValueError("wrong type") from None


def _typed(kind: Kind, value: object) -> Value:
    match kind, value:
        case (Kind.BOOL, bool()) | (Kind.STR, str()):
            return cast(Value, value)
        case (Kind.INT | Kind.FLOAT | Kind.INTS | Kind.FLOATS, bool()):
            pass
        case Kind.INT, int():
            return value
        case Kind.FLOAT, int() | float():
            return _as_float(value)
        case Kind.INTS, list() | tuple():
            if value and all(type(item) is int for item in value):
                return tuple(value)
        case Kind.FLOATS, list() | tuple():
            if value and all(type(item) in (int, float) for item in value):
                return tuple(_as_float(item) for item in value)
    raise BadValueError("wrong type")


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        raise BadValueError("out of range") from None
