"""What the lines of a raw file hold: which field is the label, a number, a category, or nothing of interest."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.data.store.schema import CRITEO, Schema
from dqrm_cpu.errors import DataError

BETWEEN_FIELDS = 255
"""A byte that no UTF-8 text has: what stands between fields once they have lost their quotes."""


class Role(IntEnum):
    """What one field is."""

    IGNORED = 0
    LABEL = 1
    INTEGER = 2  # a dense column of whole numbers that fit into 32 bits
    DECIMAL = 3  # a dense column of any numbers
    HEX = 4  # a category of up to 8 hexadecimal digits
    TEXT = 5  # a category of any text


DENSE_ROLES = (Role.INTEGER, Role.DECIMAL)
CATEGORY_ROLES = (Role.HEX, Role.TEXT)


@dataclass(frozen=True)
class Field:
    """One field of a line; the name is empty for one that is ignored or the label."""

    role: Role
    name: str = ""


@dataclass(frozen=True)
class Layout:
    """The lines of a file. Columns are numbered in the order of the fields."""

    fields: tuple[Field, ...]
    delimiter: str = "\t"
    header: bool = False  # the first line of each file names the fields
    quotes: bool = False  # fields may stand in double quotes, as RFC 4180 has it

    def __post_init__(self) -> None:
        labels = sum(field.role == Role.LABEL for field in self.fields)
        if labels != 1:
            raise DataError(f"a layout with {labels} label fields; every line has exactly one")
        if len(self.delimiter) != 1 or self.delimiter in "\r\n" or ord(self.delimiter) > 127:
            raise DataError(f"delimiter {self.delimiter!r}: want one ASCII character, such as a tab or a comma")
        if self.quotes and self.delimiter == '"':
            raise DataError(
                "a double quote cannot both quote fields and stand between them; check delimiter and quotes"
            )
        _ = self.schema

    @property
    def schema(self) -> Schema:
        """The columns that are kept."""
        return Schema(self._names(DENSE_ROLES), self._names(CATEGORY_ROLES))

    @property
    def separator(self) -> int:
        """The byte between fields that the parser meets, once quotes are gone."""
        return BETWEEN_FIELDS if self.quotes else ord(self.delimiter)

    @property
    def has_text(self) -> bool:
        """Whether some category is text, whose keys take 64 bits."""
        return any(field.role == Role.TEXT for field in self.fields)

    def _names(self, roles: tuple[Role, ...]) -> tuple[str, ...]:
        return tuple(field.name for field in self.fields if field.role in roles)


CRITEO_LAYOUT = Layout(
    (
        Field(Role.LABEL),
        *(Field(Role.INTEGER, name) for name in CRITEO.dense),
        *(Field(Role.HEX, name) for name in CRITEO.categorical),
    )
)
"""Kaggle's train.txt and Terabyte's day_0 to day_23."""


def runs_of(layout: Layout) -> NDArray[np.int64]:
    """A layout as the parser reads it: int64[R, 4] with role, fields, first column and the byte behind each field.

    Neighbours of the same role come together; the last field of a line is apart, because something else ends it.
    """
    runs: list[list[int]] = []
    dense = categorical = 0
    last = len(layout.fields) - 1
    for k, field in enumerate(layout.fields):
        closing = ord("\n") if k == last else layout.separator
        if runs and runs[-1][0] == field.role and runs[-1][3] == closing:
            runs[-1][1] += 1
        else:
            runs.append([int(field.role), 1, dense if field.role in DENSE_ROLES else categorical, closing])
        dense += field.role in DENSE_ROLES
        categorical += field.role in CATEGORY_ROLES
    return np.array(runs, np.int64)
