"""How much of the tables is not exactly zero once quantized, and how much of it the quantizer saturates."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from dqrm_cpu.kernels.types import Tables
from dqrm_cpu.quant.formula import Formula

_FLOATS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Liveness:
    """Shares of the quantized tables, all together and of each."""

    live_rows: float  # rows with any value that is not 0
    live_values: float  # values that are not 0
    clip_rate: float  # weights beyond the largest code
    table_live_rows: tuple[float, ...]
    table_live_values: tuple[float, ...]
    table_clip_rate: tuple[float, ...]


def liveness(formula: Formula, tables: Tables, scale: Tensor) -> Liveness:
    """Reads all tables; scale f32[T]."""
    bounds = list(pairwise(tables.row_offset.tolist()))
    counts = [_counts(formula, tables.weight[a:b], scale[t].view(1, 1)) for t, (a, b) in enumerate(bounds)]
    total = torch.tensor(counts, dtype=torch.float64)
    rows = torch.tensor([b - a for a, b in bounds], dtype=torch.float64)
    sizes = torch.stack((rows, rows * tables.dim, rows * tables.dim), 1)
    by_table = (total / sizes.clamp(min=1)).t().tolist()
    overall = (total.sum(0) / sizes.sum(0).clamp(min=1)).tolist()
    return Liveness(*overall, *(tuple(shares) for shares in by_table))


def _counts(formula: Formula, weight: Tensor, scale: Tensor) -> tuple[int, int, int]:
    """Live rows, live values, clipped values."""
    rows = values = clipped = 0
    for part in torch.split(weight, max(_FLOATS_AT_ONCE // weight.shape[1], 1)):
        alive = formula.values(part, scale) != 0
        rows += int(alive.any(1).sum())
        values += int(alive.sum())
        clipped += int(formula.clipped(part, scale).sum())
    return rows, values, clipped
