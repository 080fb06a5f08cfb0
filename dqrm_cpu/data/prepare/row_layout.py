"""What the lines of a raw file hold: which field is the label, a number, a category, a key, or nothing of interest."""

import re
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.data.store.schema import CRITEO, Schema
from dqrm_cpu.data.store.transform import BUCKETS, LOG, TRANSFORMS
from dqrm_cpu.errors import DataError

LONGEST_LINE = 1 << 20
"""Bytes of a line without its end; blocks have room for one that is as long beyond their size."""

STAYS = -1
"""Instead of the byte behind a field: whatever reads it next begins at the same place."""

BETWEEN_FIELDS = 255
"""The byte between fields once their quotes are removed: no UTF-8 text has it."""


class FieldRole(IntEnum):
    """The role of one field of a line."""

    IGNORED = 0
    LABEL = 1
    INTEGER = 2  # a dense column of whole numbers that fit into 32 bits
    DECIMAL = 3  # a dense column of any numbers
    HEX = 4  # a category of up to 8 hexadecimal digits
    TEXT = 5  # a category of any text
    KEY = 6  # no feature: what names the row, carried along to its prediction
    TIME = 7  # no feature: when the row was written, by which rows are split
    BAG = 8  # a category of any number of texts in a cell
    WEIGHT = 9  # no feature: how often the row counts


DENSE_ROLES = (FieldRole.INTEGER, FieldRole.DECIMAL)
CATEGORY_ROLES = (FieldRole.HEX, FieldRole.TEXT, FieldRole.BAG)
KEY_ROLES = (FieldRole.KEY,)


_BAG = re.compile(r"bag:([0-9]{1,2}|1[01][0-9]|12[0-7])?:([1-9][0-9]{0,3})", re.ASCII)

MOST_VALUES = 1024
"""The largest limit of the values of a cell."""


@dataclass(frozen=True)
class Field:
    """One field of a line; the name is empty for the label and for a field that is ignored."""

    role: FieldRole
    name: str = ""
    transform: str = LOG  # of a number
    num_buckets: int = 0  # of a number that becomes a category, at most
    separator: str = ""  # between the values of a bag; empty: they come as lists
    limit: int = 0  # of a bag: most values of a cell

    def __str__(self) -> str:
        """Writes the role and the name, as manifests record them."""
        if self.role == FieldRole.BAG:
            between = str(ord(self.separator)) if self.separator else ""
            return f"bag:{between}:{self.limit} {self.name}"
        transform = "" if self.transform == LOG else f":{self.transform}"
        buckets = f":{self.num_buckets}" if self.num_buckets else ""
        return f"{self.role.name.lower()}{transform}{buckets} {self.name}".strip()

    @classmethod
    def from_text(cls, text: str) -> "Field":
        """Reads what `str` wrote; DataError for a role that this version does not know."""
        head, _, name = text.partition(" ")
        role, transform, buckets = (*head.split(":"), "", "")[:3]
        if bag := _BAG.fullmatch(head):
            return cls(FieldRole.BAG, name, separator=chr(int(bag[1])) if bag[1] else "", limit=int(bag[2]))
        known = role.upper() in FieldRole.__members__ and role != "bag" and (not transform or transform in TRANSFORMS)
        if not known or not (not buckets or (buckets.isascii() and buckets.isdecimal() and len(buckets) < 9)):
            raise DataError(
                f"{text[:80]!r} is no field of a layout; roles are {', '.join(r.name.lower() for r in FieldRole)}"
            )
        return cls(FieldRole[role.upper()], name, transform or LOG, int(buckets or 0))


class RawColumns(NamedTuple):
    """The names of the columns that the parsers fill."""

    dense: tuple[str, ...]
    categorical: tuple[str, ...]

    @property
    def num_dense(self) -> int:
        return len(self.dense)

    @property
    def num_tables(self) -> int:
        return len(self.categorical)


@dataclass(frozen=True)
class Layout:
    """The fields of a file's lines. Columns are numbered in the order of the fields, or of `columns` where given."""

    fields: tuple[Field, ...]
    delimiter: str = "\t"
    header: bool = False  # the first line of each file names the fields
    quotes: bool = False  # fields may stand in double quotes, as RFC 4180 has it
    columns: Schema | None = None
    carried: tuple[str, ...] = ()  # categories and numbers that are carried along too, like keys
    positive: float | None = None  # labels from this number on are clicks; None: they are 0 or 1

    def __post_init__(self) -> None:
        if self.num_labels > 1:
            raise DataError(f"a layout with {self.num_labels} label fields; name one of them")
        if len(self.delimiter) != 1 or self.delimiter in "\r\n" or ord(self.delimiter) > 127:
            raise DataError(f"delimiter {self.delimiter!r}: want one ASCII character, such as a tab or a comma")
        if self.quotes and self.delimiter == '"':
            raise DataError(
                "a double quote cannot both quote fields and stand between them; check delimiter and quotes"
            )
        _ = self.schema

    @property
    def schema(self) -> Schema:
        """The columns that are kept; numbers that become categories stand behind the other ones."""
        if self.columns is not None:
            return self.columns
        dense = tuple(name for name in self._names(DENSE_ROLES) if name not in self.buckets)
        weight = self._names((FieldRole.WEIGHT,))
        return Schema((*dense, *weight), (*self._names(CATEGORY_ROLES), *self.buckets), "".join(weight))

    @property
    def buckets(self) -> tuple[str, ...]:
        """The names of the numbers that become categories, in the order of their tables, wherever the fields stand."""
        names = tuple(field.name for field in self.fields if field.transform == BUCKETS)
        return names if self.columns is None else tuple(name for name in self.columns.categorical if name in names)

    @property
    def raw(self) -> RawColumns:
        """The columns as they are read: numbers that become categories stand behind the other ones, then the time.

        The time of a row is the sum of two floats.
        """
        schema, buckets = self.schema, self.buckets
        times = tuple(f"{name} {half}" for name in self._names((FieldRole.TIME,)) for half in ("high", "low"))
        return RawColumns((*schema.dense, *buckets, *times), schema.categorical[: schema.num_tables - len(buckets)])

    @property
    def bags(self) -> tuple[Field, ...]:
        """The fields of categories with any number of values, in the order of their tables."""
        of_name = {field.name: field for field in self.fields if field.role == FieldRole.BAG}
        return tuple(of_name[name] for name in self.raw.categorical if name in of_name)

    @property
    def bag_tables(self) -> tuple[int, ...]:
        """The numbers of their tables, which rise."""
        names = {field.name for field in self.bags}
        return tuple(t for t, name in enumerate(self.raw.categorical) if name in names)

    @property
    def num_labels(self) -> int:
        """1, or 0 of rows that are only to be scored."""
        return sum(field.role == FieldRole.LABEL for field in self.fields)

    @property
    def keys(self) -> tuple[str, ...]:
        """The names of the columns that are carried along."""
        fields = (field for field in self.fields if field.role in KEY_ROLES or field.name in self.carried)
        return tuple(field.name for field in fields if field.name)

    def ignoring(self, role: FieldRole) -> "Layout":
        """Returns the layout in which nothing is known of the fields of this role but where they stand."""
        fields = tuple(Field(FieldRole.IGNORED) if field.role == role else field for field in self.fields)
        return replace(self, fields=fields)

    def column_numbers(self) -> list[int]:
        """Returns for each field the number of its column among those of its kind; 0 for a field of none."""
        schema, keys = self.raw, self.keys
        kinds = (
            ((*DENSE_ROLES, FieldRole.WEIGHT), schema.dense),
            (CATEGORY_ROLES, schema.categorical),
            (KEY_ROLES, keys),
        )
        number = {(role, name): k for roles, names in kinds for role in roles for k, name in enumerate(names)}
        number |= {(FieldRole.TIME, name): schema.num_dense - 2 for name in self._names((FieldRole.TIME,))}
        return [number.get((field.role, field.name), 0) for field in self.fields]

    @property
    def separator(self) -> int:
        """The byte between fields that the parser meets, once quotes are removed."""
        return BETWEEN_FIELDS if self.quotes else ord(self.delimiter)

    @property
    def has_text(self) -> bool:
        """Tells whether some category is text, whose keys take 64 bits."""
        return any(field.role in (FieldRole.TEXT, FieldRole.BAG) for field in self.fields)

    def _names(self, roles: tuple[FieldRole, ...]) -> tuple[str, ...]:
        return tuple(field.name for field in self.fields if field.role in roles)


CRITEO_LAYOUT = Layout(
    (
        Field(FieldRole.LABEL),
        *(Field(FieldRole.INTEGER, name) for name in CRITEO.dense),
        *(Field(FieldRole.HEX, name) for name in CRITEO.categorical),
    )
)
"""Kaggle's train.txt and Terabyte's day_0 to day_23."""


def raw_numbers(layout: Layout) -> NDArray[np.uint8]:
    """Tells the parsers which of the raw dense columns keep their values: uint8[D], 0 where they take logarithms."""
    transform = {field.name: field.transform for field in layout.fields if field.role in DENSE_ROLES}
    weight = layout.schema.weight
    return np.array([name == weight or transform.get(name, LOG) != LOG for name in layout.raw.dense], np.uint8)


def runs_of(layout: Layout) -> NDArray[np.int64]:
    """Encodes a layout for the parser: int64[R, 4] with role, fields, first column and the byte behind each field.

    Neighbours of the same role whose columns follow each other come together; the last field of a line is apart,
    because something else ends it. A field that is carried along and read too has a run before its own. Of a bag, the
    parser only notes where its cells stand, as it does for keys: they come behind those.
    """
    runs: list[list[int]] = []
    last = len(layout.fields) - 1
    for k, (field, column) in enumerate(zip(layout.fields, layout.column_numbers(), strict=True)):
        if field.name and field.name in layout.carried:
            runs.append([int(FieldRole.KEY), 1, layout.keys.index(field.name), STAYS])
        closing = ord("\n") if k == last else layout.separator
        read_as = field.role
        if field.role == FieldRole.BAG:
            read_as, column = FieldRole.KEY, len(layout.keys) + layout.bags.index(field)
        role, count, first, before = runs[-1] if runs else (-1, 0, 0, 0)
        is_numbered = field.role not in (FieldRole.LABEL, FieldRole.IGNORED)
        if role == read_as and before == closing and (not is_numbered or column == first + count):
            runs[-1][1] += 1
        else:
            runs.append([int(read_as), 1, column, closing])
    return np.array(runs, np.int64)
