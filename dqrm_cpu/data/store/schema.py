"""The columns of a prepared data set, in the order in which they are stored."""

from collections import Counter
from dataclasses import dataclass

from dqrm_cpu.errors import DataError


@dataclass(frozen=True)
class Schema:
    """Names of the dense and the categorical columns; the label is beside them."""

    dense: tuple[str, ...]
    categorical: tuple[str, ...]

    def __post_init__(self) -> None:
        names = (*self.dense, *self.categorical)
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise DataError(f"column {min(twice)!r} is named twice; give every column a name of its own")
        if not self.dense or not self.categorical:
            raise DataError("a data set has at least one dense and one categorical column; name them in its schema")

    @property
    def num_dense(self) -> int:
        return len(self.dense)

    @property
    def num_tables(self) -> int:
        """One embedding table per categorical column."""
        return len(self.categorical)


CRITEO = Schema(tuple(f"I{k}" for k in range(1, 14)), tuple(f"C{k}" for k in range(1, 27)))
"""Criteo Kaggle and Terabyte."""
