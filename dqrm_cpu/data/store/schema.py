"""The columns of a data set, and what makes ids and columns mean the same in two places.

Two data sets with the same identity give a category the same id, whatever their rows; a model may score either. Data
sets that other programs numbered have none: nobody can say which category an id stands for.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import msgspec

from dqrm_cpu.data.store.transform import Text, Transform
from dqrm_cpu.errors import DataError

_Names = Annotated[tuple[Text, ...], msgspec.Meta(max_length=1 << 16)]
_TEXT = re.compile(r"schema ([0-9a-f]{16}) vocabulary ([0-9a-f]{16})")


@dataclass(frozen=True)
class Schema:
    """The names of the dense and the categorical columns; the label is beside them.

    Where rows have weights, the last dense column holds them, and `weight` is its name: how often each row counts.
    """

    dense: _Names
    categorical: _Names
    weight: Text = ""

    def __post_init__(self) -> None:
        names = (*self.dense, *self.categorical)
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise DataError(f"column {min(twice)!r} is named twice; give every column a name of its own")
        if not self.dense or not self.categorical:
            raise DataError("a data set has at least one dense and one categorical column; name them in its schema")
        if self.weight and (self.weight != self.dense[-1] or len(self.dense) == 1):
            raise DataError(f"weights in {self.weight!r}? they stand in the last of several dense columns, or nowhere")

    @property
    def num_dense(self) -> int:
        """Dense columns that are stored, weights among them."""
        return len(self.dense)

    @property
    def features(self) -> tuple[str, ...]:
        """The dense columns that a model reads: all but the weights."""
        return self.dense[:-1] if self.weight else self.dense

    @property
    def num_tables(self) -> int:
        """One embedding table per categorical column."""
        return len(self.categorical)


CRITEO = Schema(tuple(f"I{k}" for k in range(1, 14)), tuple(f"C{k}" for k in range(1, 27)))
"""Criteo Kaggle and Terabyte."""


@dataclass(frozen=True)
class DataIdentity:
    """Two digests of 16 hexadecimal digits. `str` gives the form in which runs and packed models record them."""

    schema: Text  # of the names of the columns, in order, and of what numbers are transformed by
    vocabulary: Text  # of everything that decides which id a category has

    def __post_init__(self) -> None:
        if not _TEXT.fullmatch(str(self)):
            raise DataError(f"{str(self)!r} is no identity of a data set; it has two digests of 16 hexadecimal digits")

    def __str__(self) -> str:
        return f"schema {self.schema} vocabulary {self.vocabulary}"

    @classmethod
    def from_text(cls, text: str) -> "DataIdentity | None":
        """Reads the identity that `str` wrote; None of an empty text, as older files have it, and of what is none."""
        match = _TEXT.fullmatch(text)
        return cls(match[1], match[2]) if match else None

    def difference(self, other: "DataIdentity") -> str:
        """Says which of the two digests differ, for a message; empty where neither does."""
        parts = [name for name in ("schema", "vocabulary") if getattr(self, name) != getattr(other, name)]
        return " and ".join(parts)


class ColumnKeys(NamedTuple):
    """The vocabulary of one column: how many keys have ids, and the CRC-32 of their array."""

    name: str
    num_keys: int
    crc32: int


def identity_of_keys(
    schema: Schema,
    key_bits: int,
    max_ind_range: int,
    columns: Sequence[ColumnKeys],
    transforms: Sequence[Transform] = (),
) -> DataIdentity:
    """Returns the identity of data whose ids are places in arrays of keys, of 32 bits (hashes) or 64 (text)."""
    return _identity(schema, transforms, ["keys", key_bits, max_ind_range, [list(column) for column in columns]])


def identity_of_hashing(
    schema: Schema, key_bits: int, max_ind_range: int, hash_rows: int, transforms: Sequence[Transform] = ()
) -> DataIdentity:
    """Returns the identity of data whose ids are hashes, taken modulo the rows of the table."""
    return _identity(schema, transforms, ["hash", key_bits, max_ind_range, hash_rows])


def identity_of_generated(num_dense: int, table_rows: Sequence[int], seed: int, of_ids: str = "") -> DataIdentity:
    """Returns the identity of generated clicks: the seed and the sizes of all tables decide what an id means.

    `of_ids` says which rows the ids were found in, where the tables hold those that occur.
    """
    vocabulary: list[object] = [seed, *table_rows, *([of_ids] if of_ids else [])]
    return DataIdentity(_digest(["generated", num_dense, len(table_rows)]), _digest(vocabulary))


def _identity(schema: Schema, transforms: Sequence[Transform], vocabulary: list[object]) -> DataIdentity:
    columns: list[object] = [schema.features, schema.categorical]
    if transforms:  # without any, as it was before there were some
        columns.append([[transform.name, transform.kind, transform.numbers] for transform in transforms])
    return DataIdentity(_digest(columns), _digest(vocabulary))


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
