"""How much of what a step looks up lies beyond its scale: what a scale that is kept for many iterations costs."""

from itertools import pairwise

import torch
from torch import Tensor

from dqrm_cpu.kernels.types import Bags, Tables


def clip_rates(tables: Tables, bags: Bags, step: Tensor, bits: int) -> Tensor:
    """f32[T]: of the looked-up values of each table, the share that the largest code cuts off; 0 where there are none.

    A value of up to half a step beyond the largest code is rounded to it like any other.
    """
    limit = (2 ** (bits - 1) - 0.5) * step
    rates = torch.zeros(tables.num_tables)
    for t, ids in enumerate(_ids_by_table(bags, tables.num_tables)):
        if ids.numel():
            rows = tables.weight[ids.long() + tables.row_offset[t]]
            rates[t] = (rows.abs() > limit[t]).float().mean()
    return rates


def _ids_by_table(bags: Bags, num_tables: int) -> list[Tensor]:
    if bags.offsets is None:
        return list(bags.ids)
    batch = (bags.offsets.numel() - 1) // num_tables
    return [bags.ids[start:end] for start, end in pairwise(bags.offsets[::batch].tolist())]
