"""What makes ids and columns mean the same in two places: a digest of the schema, and one of the vocabulary.

Two data sets with the same identity give a category the same id, whatever their rows; a model may score either. Data
sets that other programs numbered have none: nobody can say which category an id stands for.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dqrm_cpu.data.store.schema import Schema
from dqrm_cpu.errors import DataError

_TEXT = re.compile(r"schema ([0-9a-f]{16}) vocabulary ([0-9a-f]{16})")


@dataclass(frozen=True)
class DataIdentity:
    """Digests of 16 hexadecimal digits. `str` gives the form in which runs and packed models record them."""

    schema: str  # of the names of the columns, in order
    vocabulary: str  # of everything that decides which id a category has

    def __post_init__(self) -> None:
        if not _TEXT.fullmatch(str(self)):
            raise DataError(f"{str(self)!r} is no identity of a data set; it has two digests of 16 hexadecimal digits")

    def __str__(self) -> str:
        return f"schema {self.schema} vocabulary {self.vocabulary}"

    @classmethod
    def from_text(cls, text: str) -> "DataIdentity | None":
        """The identity that `str` wrote; None of an empty text, as older files have it, and of what is none."""
        match = _TEXT.fullmatch(text)
        return cls(match[1], match[2]) if match else None

    def difference(self, other: "DataIdentity") -> str:
        """Which of the two digests differ, for a message; empty where neither does."""
        parts = [name for name in ("schema", "vocabulary") if getattr(self, name) != getattr(other, name)]
        return " and ".join(parts)


class ColumnKeys(NamedTuple):
    """The vocabulary of one column: how many keys have ids, and the CRC-32 of their array."""

    name: str
    num_keys: int
    crc32: int


def identity_of_keys(schema: Schema, key_bits: int, max_ind_range: int, columns: Sequence[ColumnKeys]) -> DataIdentity:
    """Of a data set whose ids are places in arrays of keys: of 32 bits (hashes, modulo max_ind_range) or 64 (text)."""
    return _identity(schema, ["keys", key_bits, max_ind_range, [list(column) for column in columns]])


def identity_of_hashing(schema: Schema, key_bits: int, max_ind_range: int, hash_rows: int) -> DataIdentity:
    """Of a data set whose ids are hashes, taken modulo the rows of the table."""
    return _identity(schema, ["hash", key_bits, max_ind_range, hash_rows])


def identity_of_generated(num_dense: int, table_rows: Sequence[int], seed: int) -> DataIdentity:
    """Of generated clicks: the seed decides what an id means, and tables of other sizes have other ids."""
    return DataIdentity(_digest(["generated", num_dense, len(table_rows)]), _digest([seed, *table_rows]))


def _identity(schema: Schema, vocabulary: list[object]) -> DataIdentity:
    return DataIdentity(_digest([schema.dense, schema.categorical]), _digest(vocabulary))


def _digest(said: object) -> str:
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]
