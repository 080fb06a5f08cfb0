"""How much of what a step looks up lies beyond its scale: what a scale that is kept for many iterations costs."""

from itertools import pairwise

import torch
from torch import Tensor

from dqrm_cpu.kernels.types import Bags, Tables
from dqrm_cpu.quant.formula import Formula


def clip_rates(formula: Formula, tables: Tables, bags: Bags, scale: Tensor) -> Tensor:
    """f32[T]: of the looked-up values of each table, the share that the quantizer saturates; 0 where there are none."""
    rates = torch.zeros(tables.num_tables)
    for t, ids in enumerate(_ids_by_table(bags, tables.num_tables)):
        if ids.numel():
            rows = tables.weight[ids.long() + tables.row_offset[t]]
            rates[t] = formula.clipped(rows, scale[t].view(1, 1)).float().mean()
    return rates


def _ids_by_table(bags: Bags, num_tables: int) -> list[Tensor]:
    if bags.offsets is None:
        return list(bags.ids)
    batch = (bags.offsets.numel() - 1) // num_tables
    return [bags.ids[start:end] for start, end in pairwise(bags.offsets[::batch].tolist())]
