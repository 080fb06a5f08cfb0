"""One setting: what it means, which values it takes, and how a text or a TOML value becomes one."""

import dataclasses
import sys
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, get_args, get_origin

T = TypeVar("T")

Value = bool | int | float | str | tuple[int, ...] | tuple[float, ...]

_LARGEST_INT = 2**63 - 1
_AUTO = "auto"
_TYPE_NAMES = {bool: "true or false", int: "integer", float: "number", str: "text"}


@dataclass(frozen=True)
class Conflict:
    """Settings that do not go together, and how to mend it."""

    keys: tuple[str, ...]
    message: str


class BadValueError(ValueError):
    """The value does not fit the setting; the message says how, not where."""


class OneOf(tuple[str | int, ...]):
    """The values that a setting takes, as the annotation of its type."""

    def __new__(cls, *choices: str | int) -> "OneOf":
        return super().__new__(cls, choices)


@dataclass(frozen=True)
class Range:
    """The numbers that a setting takes, as the annotation of its type; `above` is a minimum that is itself excluded.

    `auto` is the number, outside of these, that the word auto stands for; None: the setting does not take it.
    """

    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    auto: int | None = None

    def __contains__(self, number: float) -> bool:
        low, high, above = self.minimum, self.maximum, self.above
        return number == self.auto or (
            abs(number) <= (_LARGEST_INT if isinstance(number, int) else sys.float_info.max)  # which no NaN is
            and (low is None or number >= low)
            and (high is None or number <= high)
            and (above is None or number > above)
        )

    def __str__(self) -> str:
        """Returns the range in words; empty where there is no limit."""
        low, high, above = self.minimum, self.maximum, self.above
        if low is not None and high is not None:
            return f"{low:,} to {high:,}"
        if above is not None:
            return f"above {above:,}" if high is None else f"above {above:,}, at most {high:,}"
        return "" if low is None else f"{low:,} or more"


def setting(default: T, help: str) -> T:  # noqa: A002  # argparse's word for the same thing
    """Makes a dataclass field with its help; its annotation says which values it takes."""
    return dataclasses.field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Setting:
    """A setting and its dotted `key`, as in quant.scale_period.

    Its values are of type `item`, or tuples of them where it is a list: one of `choices`, or within `range`.
    """

    key: str
    help: str
    item: type[bool] | type[int] | type[float] | type[str]
    is_list: bool
    choices: tuple[str | int, ...]
    range: Range

    @classmethod
    def of(cls, field: "dataclasses.Field[Any]", section: str) -> "Setting":
        """Reads the annotation of a dataclass field: a type, that with a Range or OneOf, or a tuple of such."""
        hint: Any = field.type
        is_list = get_origin(hint) is tuple
        item = get_args(hint)[0] if is_list else hint
        item, allowed = get_args(item) if get_origin(item) is Annotated else (item, Range())
        choices, limits = (allowed, Range()) if isinstance(allowed, OneOf) else ((), allowed)
        key = f"{section}.{field.name}" if section else field.name
        return cls(key, field.metadata["help"], item, is_list, choices, limits)

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
        """Describes the values that are allowed, for help and errors."""
        if self.choices:
            return " | ".join(map(str, self.choices))
        name, limits = _TYPE_NAMES[self.item], str(self.range)
        if self.is_list:
            return f"{name}s, each {limits}" if limits else f"{name}s"
        if self.range.auto is not None:
            limits += f", or {_AUTO}"
        return f"{name}, {limits}" if limits else name

    def from_text(self, text: str) -> Value:
        """Reads what was typed on a command line."""
        text = text.strip()
        typed: object
        if text == _AUTO and self.range.auto is not None:
            return self.range.auto
        try:
            if self.item is bool:
                typed = {"true": True, "false": False}.get(text.lower(), text)
            else:
                typed = [self.item(part) for part in text.split(",")] if self.is_list else self.item(text)
        except ValueError:
            raise BadValueError("wrong type") from None
        if self.range.auto is not None and typed == self.range.auto:  # which only the word stands for
            raise BadValueError("out of range")
        return self.from_value(typed)

    def from_value(self, value: object) -> Value:
        """Checks a value of a TOML file, or an already typed one."""
        if value == _AUTO and self.range.auto is not None:
            return self.range.auto
        if not self.is_list:
            checked: Value = self._checked([value])[0]
            return checked
        if not isinstance(value, list | tuple) or not value:
            raise BadValueError("wrong type")
        return tuple(self._checked(value))

    def _checked(self, values: "list[Any] | tuple[Any, ...]") -> list[Any]:
        accepted = (int, float) if self.item is float else self.item
        if not all(isinstance(value, accepted) and isinstance(value, bool) <= (self.item is bool) for value in values):
            raise BadValueError("wrong type")
        try:
            typed = [float(value) if self.item is float else value for value in values]
        except OverflowError:
            raise BadValueError("out of range") from None
        if self.choices and not set(typed) <= set(self.choices):
            raise BadValueError("no such choice")
        if self.item is not str and not all(value in self.range for value in typed):
            raise BadValueError("out of range")
        return typed


def plain_value(one: Setting, value: Value) -> bool | int | float | str | list[int] | list[float]:
    """Returns a value of a setting as TOML and JSON have it: lists for tuples, the word auto for its number."""
    if isinstance(value, tuple):
        return list(value)
    return _AUTO if one.range.auto is not None and value == one.range.auto else value


def value_text(value: Value) -> str:
    """Formats a value as it is typed on the command line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
