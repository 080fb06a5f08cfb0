"""How much of the tables is not exactly zero once quantized, and how much of it the quantizer saturates.

A row that training never updated still has the weights that it was drawn with: those can be drawn again from the seed,
so that such rows are told apart without anything being noted while training. That they are zero is no achievement of a
quantizer: shares of all rows stand beside those of the rows that were updated.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from dqrm_cpu.kernels.types import Tables
from dqrm_cpu.quant.formula import Formula

_FLOATS_AT_ONCE = 1 << 20
_FLAGS_AT_ONCE = 8

DrawRows = Callable[[int, int, Tensor], None]
"""From the number of a table and a row in it: writes what that row and those behind it began with, into f32[n, D]."""


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
    """Rows of all tables."""

    rows: int
    live: int  # with any code that is not 0
    updated: int  # changed by training
    live_updated: int

    @property
    def never_updated(self) -> int:
        return self.rows - self.updated


def liveness(formula: Formula, tables: Tables, scale: Tensor, first_rows: DrawRows | None = None) -> Liveness:
    """Reads all tables; scale f32[T]. `first_rows`: None where the first weights are not known."""
    counts = _count_rows(formula, tables, scale, first_rows, values_too=True)
    rows = tables.row_offset.diff().double()
    values = rows * tables.dim
    # Rows that are updated and live are a share of the updated ones.
    sizes = torch.stack((rows, values, values, rows, counts[:, 3]), 1)
    by_table = [tuple(shares) for shares in (counts / sizes.clamp(min=1)).t().tolist()]
    overall = (counts.sum(0) / sizes.sum(0).clamp(min=1)).tolist()
    known = () if first_rows is None else (*overall[3:], *by_table[3:])
    return Liveness(*overall[:3], *by_table[:3], *known)


def count_rows(formula: Formula, tables: Tables, scale: Tensor, first_rows: DrawRows) -> RowCounts:
    """Reads all tables; scale f32[T]."""
    counts = _count_rows(formula, tables, scale, first_rows, values_too=False)
    live, _, _, updated, live_updated = (int(count) for count in counts.sum(0))
    return RowCounts(int(tables.row_offset[-1]), live, updated, live_updated)


def _count_rows(
    formula: Formula, tables: Tables, scale: Tensor, first_rows: DrawRows | None, values_too: bool
) -> Tensor:
    """f64[T, 5]: live rows, live values, clipped values, updated rows, live updated rows; 0 where not asked for."""
    rows_at_once = max(_FLOATS_AT_ONCE // tables.dim, 1)
    drawn = torch.empty(rows_at_once, tables.dim, device=tables.weight.device)
    counts = torch.zeros(tables.num_tables, 5, dtype=torch.float64)
    for t, (first, end) in enumerate(pairwise(tables.row_offset.tolist())):
        for start in range(first, end, rows_at_once):
            part, count, step = tables.weight[start : min(start + rows_at_once, end)], counts[t], scale[t].view(1, 1)
            codes = formula.values(part, step) != 0
            alive = _any_of_row(codes)
            count[0] += torch.count_nonzero(alive)
            if values_too:
                count[1] += torch.count_nonzero(codes)
                count[2] += torch.count_nonzero(formula.clipped(part, step))
            if first_rows is not None:
                before = drawn[: part.shape[0]]
                first_rows(t, start - first, before)
                updated = _any_of_row(part != before)
                count[3] += torch.count_nonzero(updated)
                count[4] += torch.count_nonzero(updated & alive)
    return counts


def _any_of_row(flags: Tensor) -> Tensor:
    """bool[n] of bool[n, D]: eight at once where rows divide so, five times as quick."""
    divides = flags.shape[1] % _FLAGS_AT_ONCE == 0
    return (flags.view(torch.int64) != 0).any(1) if divides else flags.any(1)
