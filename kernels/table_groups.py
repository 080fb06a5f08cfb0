"""Embedding tables of several dimensions: those of each lie in an arena of their own; kernels see one at a time.

A model whose tables all have one dimension has one group, the arena of all tables: nothing is copied or put in order.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from .master_rows import dim_of, row_values
from .types import Bags, Tables


class TableGroup(NamedTuple):
    """The tables of one dimension, and the numbers that they have among all tables of the model, rising."""

    tables: Tables
    numbers: tuple[int, ...]


class TableGroups:
    """All T tables of a model, in the order of its features."""

    def __init__(self, groups: Sequence[TableGroup]) -> None:
        self._groups = tuple(groups)
        order = torch.tensor([number for group in groups for number in group.numbers], dtype=torch.int64)
        weights = [
            group.tables.weight[first:end]
            for group in groups
            for first, end in pairwise(group.tables.row_offset.tolist())
        ]
        self._places = order.argsort()  # of each table among those of the groups
        self.weights = tuple(weights[place] for place in self._places.tolist())
        """The rows of each table, f32[rows, D of the table] or of another form (master_rows): views of the arenas."""
        rows = torch.tensor([0, *(weight.shape[0] for weight in self.weights)], dtype=torch.int64)
        self.row_offset = rows.cumsum(0)
        """The first row of each table where all are counted one after the other, int64[T + 1]."""

    def __iter__(self) -> Iterator[TableGroup]:
        return iter(self._groups)

    def __len__(self) -> int:
        return len(self._groups)

    @property
    def num_tables(self) -> int:
        return len(self.weights)

    @property
    def dims(self) -> tuple[int, ...]:
        """The values of a row of each table."""
        return tuple(map(dim_of, self.weights))

    def values(self, table: int, first_row: int, end_row: int) -> Tensor:
        """Returns the values f32[N, D] of consecutive rows of a table; a view where they are FP32."""
        return row_values(self.weights[table][first_row:end_row])

    @property
    def dtype(self) -> torch.dtype:
        """The form of the rows."""
        dtype: torch.dtype = self.weights[0].dtype
        return dtype

    @property
    def device(self) -> torch.device:
        device: torch.device = self.weights[0].device
        return device

    @property
    def only(self) -> Tables:
        """The arena of a model that has one."""
        (group,) = self._groups
        return group.tables

    def names(self, name: str) -> list[str]:
        """Returns what the groups' parts of a tensor are called in a checkpoint: by dimension, if there are several."""
        return [name] if len(self) == 1 else [f"{name}.{group.tables.dim}" for group in self]

    def split(self, values: Tensor) -> list[Tensor]:
        """Returns the part of each group of values [T]."""
        return [values] if len(self) == 1 else [values[list(group.numbers)] for group in self]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Returns the values [T] of all tables from those of each group."""
        return parts[0] if len(self) == 1 else torch.cat(list(parts))[self._places]

    def bags(self, bags: Bags) -> tuple[Bags, ...]:
        """Returns the lookups of each group; those of all tables have been checked."""
        return (bags,) if len(self) == 1 else tuple(self._bags_of(group.numbers, bags) for group in self)

    def _bags_of(self, numbers: Sequence[int], bags: Bags) -> Bags:
        offsets = bags.offsets
        if offsets is None:
            return bags._replace(ids=bags.ids[list(numbers)])
        batch = (offsets.numel() - 1) // self.num_tables
        of_tables = [offsets[number * batch : (number + 1) * batch + 1] for number in numbers]
        ids = torch.cat([bags.ids[int(bounds[0]) : int(bounds[-1])] for bounds in of_tables])
        lengths = torch.cat([bounds.diff() for bounds in of_tables])
        return bags._replace(ids=ids, offsets=torch.nn.functional.pad(lengths.cumsum(0), (1, 0)))


def one_group(tables: Tables) -> TableGroups:
    """Returns the tables of a single arena as those of a model."""
    return TableGroups([TableGroup(tables, tuple(range(tables.num_tables)))])
