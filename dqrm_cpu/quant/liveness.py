"""How much of the tables is not exactly zero once quantized, and how much of it the quantizer saturates.

A row that training never updated still has the weights that it was drawn with: those can be drawn again from the seed,
so that such rows are told apart without anything being noted while training. That they are zero is no achievement of a
quantizer: shares of all rows stand beside those of the rows that were updated.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from dqrm_cpu.kernels.master_rows import blocks_of_values, row_values
from dqrm_cpu.kernels.table_groups import TableGroups
from dqrm_cpu.kernels.types import Bags
from dqrm_cpu.quant.formula import Formula

_FLOATS_AT_ONCE = 1 << 20
_FLAGS_AT_ONCE = 8

DrawRows = Callable[[int, int, Tensor], None]
"""Writes what a row of a table and those behind it began with into n rows, given the numbers of table and row."""


@dataclass(frozen=True)
class Liveness:
    """Shares of the quantized tables, all together and of each."""

    live_rows: float  # rows with any value that is not 0
    live_values: float  # values that are not 0
    clip_rate: float  # weights beyond the largest code
    table_live_rows: tuple[float, ...]
    table_live_values: tuple[float, ...]
    table_clip_rate: tuple[float, ...]
    # NaN and empty where the first weights are not known, as in rows of earlier versions.
    updated_rows: float = math.nan  # rows that training changed
    live_updated_rows: float = math.nan  # of those alone: with any value that is not 0
    table_updated_rows: tuple[float, ...] = ()
    table_live_updated_rows: tuple[float, ...] = ()


@dataclass(frozen=True)
class RowCounts:
    """The number of rows of all tables, and what became of them."""

    rows: int
    live: int  # with any code that is not 0
    updated: int  # changed by training
    live_updated: int

    @property
    def never_updated(self) -> int:
        return self.rows - self.updated

    def __add__(self, other: "RowCounts") -> "RowCounts":
        return RowCounts(
            self.rows + other.rows,
            self.live + other.live,
            self.updated + other.updated,
            self.live_updated + other.live_updated,
        )


def liveness(
    formula: Formula,
    tables: TableGroups,
    scale: Tensor,
    first_rows: DrawRows | None = None,
    over_ranks: Callable[[Tensor], Tensor] | None = None,
) -> Liveness:
    """Computes the shares from all tables; scale f32[T]. `first_rows`: None where the first weights are not known.

    `over_ranks`: the sum f64[T, n] over all processes, where each has some rows; None: this one has all.
    """
    rows = tables.row_offset.diff().double()
    values = rows * torch.tensor(tables.dims, dtype=torch.float64)
    counts = _count_rows(formula, tables, scale, first_rows, values_too=True)
    if over_ranks is not None:
        counts = over_ranks(torch.cat([counts, rows[:, None], values[:, None]], 1))
        counts, rows, values = counts[:, :-2], counts[:, -2], counts[:, -1]
    # Rows that are updated and live are a share of the updated ones.
    sizes = torch.stack((rows, values, values, rows, counts[:, 3]), 1)
    by_table = [tuple(shares) for shares in (counts / sizes.clamp(min=1)).t().tolist()]
    overall = (counts.sum(0) / sizes.sum(0).clamp(min=1)).tolist()
    known = () if first_rows is None else (*overall[3:], *by_table[3:])
    return Liveness(*overall[:3], *by_table[:3], *known)


def count_rows(formula: Formula, tables: TableGroups, scale: Tensor, first_rows: DrawRows) -> tuple[RowCounts, ...]:
    """Counts the rows of each table; scale f32[T]."""
    counts = _count_rows(formula, tables, scale, first_rows, values_too=False).long()
    return tuple(
        RowCounts(weight.shape[0], live, updated, live_updated)
        for weight, (live, _, _, updated, live_updated) in zip(tables.weights, counts.tolist(), strict=True)
    )


def live_rows(formula: Formula, tables: TableGroups, scale: Tensor) -> list[Tensor]:
    """Tells which rows of each table have any code that is not 0, bool[rows]; scale f32[T]."""
    alive = []
    for weight, of_table in zip(tables.weights, scale, strict=True):
        parts = blocks_of_values(weight, max(_FLOATS_AT_ONCE // weight.shape[1], 1))
        alive.append(torch.cat([_any_of_row(formula.values(part, of_table.view(1, 1)) != 0) for part in parts]))
    return alive


def clip_rates(formula: Formula, tables: TableGroups, bags: Sequence[Bags], scale: Tensor) -> Tensor:
    """Returns f32[T]: which share of the looked-up values lies beyond the largest code; 0 where there are none.

    That is what a scale which is kept for many iterations costs.
    """
    rates = torch.zeros(tables.num_tables)
    for group, own in zip(tables, bags, strict=True):
        for t, ids in zip(group.numbers, _ids_by_table(own, group.tables.num_tables), strict=True):
            if ids.numel():
                rows = row_values(tables.weights[t][ids.long()])
                rates[t] = formula.clipped(rows, scale[t].view(1, 1)).float().mean()
    return rates


def _count_rows(
    formula: Formula, tables: TableGroups, scale: Tensor, first_rows: DrawRows | None, values_too: bool
) -> Tensor:
    """Counts f64[T, 5]: live rows, live values, clipped values, updated rows, live updated rows; 0 if not asked for."""
    drawn = torch.empty(_FLOATS_AT_ONCE, device=tables.device, dtype=tables.dtype)
    counts = torch.zeros(tables.num_tables, 5, dtype=torch.float64)
    for t, weight in enumerate(tables.weights):
        rows_at_once = max(_FLOATS_AT_ONCE // weight.shape[1], 1)
        for start in range(0, weight.shape[0], rows_at_once):
            part, count = weight[start : start + rows_at_once], counts[t]
            table_scale = scale[t].view(1, 1)
            values = row_values(part)
            codes = formula.values(values, table_scale) != 0
            alive = _any_of_row(codes)
            count[0] += torch.count_nonzero(alive)
            if values_too:
                count[1] += torch.count_nonzero(codes)
                count[2] += torch.count_nonzero(formula.clipped(values, table_scale))
            if first_rows is not None:
                before = drawn[: part.numel()].view(part.shape)
                first_rows(t, start, before)
                updated = _any_of_row(part != before)
                count[3] += torch.count_nonzero(updated)
                count[4] += torch.count_nonzero(updated & alive)
    return counts


def _any_of_row(flags: Tensor) -> Tensor:
    """Returns bool[n] of bool[n, D]: eight at once where rows divide so, five times as quick."""
    divides = flags.shape[1] % _FLAGS_AT_ONCE == 0
    return (flags.view(torch.int64) != 0).any(1) if divides else flags.any(1)


def _ids_by_table(bags: Bags, num_tables: int) -> list[Tensor]:
    if bags.offsets is None:
        return list(bags.ids)
    batch = (bags.offsets.numel() - 1) // num_tables
    return [bags.ids[start:end] for start, end in pairwise(bags.offsets[::batch].tolist())]
