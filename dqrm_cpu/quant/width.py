"""How wide the tables' steps are beside that of max|W|: the same in all steps, rising, or such that a share of the
rows stays alive.

A row is alive if any of its codes is not 0: if its own max|W| exceeds half a step. The wider the step, the more rows
are exactly zero: they contribute nothing, and need not be stored.
"""

from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dqrm_cpu.config import QuantConfig
from dqrm_cpu.kernels.types import Tables

_ROWS_AT_ONCE = 1 << 16


class StepWidth(Protocol):
    """Widths f32[T]."""

    period: int
    """A width that was found may be used that many iterations."""

    def at(self, iteration: int, unit_step: Tensor) -> Tensor:
        """For training; unit_step f32[T] is the step of width 1, of the weights as they stand."""


class Ramp:
    """From 1 to the final widths in so many iterations; the final ones before any training."""

    period = 1

    def __init__(self, widths: Tensor, steps: int) -> None:
        self._widths = widths
        self._steps = steps

    def at(self, iteration: int, unit_step: Tensor) -> Tensor:
        share = 1.0 if iteration < 0 or not self._steps else min((iteration + 1) / self._steps, 1.0)
        return 1 + (self._widths - 1) * share


class TargetAlive:
    """The width, 1 or more, that leaves a share of each table's rows alive, from all of its rows."""

    def __init__(self, quant: QuantConfig, tables: Tables) -> None:
        self._share = quant.target_alive
        self._min_rows = quant.target_alive_min_rows
        self._tables = tables
        self.period = quant.target_alive_period

    def at(self, iteration: int, unit_step: Tensor) -> Tensor:
        widths = torch.ones(self._tables.num_tables)
        for table, (first, end) in enumerate(pairwise(self._tables.row_offset.tolist())):
            if end - first >= self._min_rows:
                step = step_for_alive_rows(row_absmax(self._tables.weight[first:end]), self._share)
                widths[table] = max(step / float(unit_step[table]), 1.0)
        return widths.to(unit_step.device)


def row_absmax(weight: Tensor) -> Tensor:
    """max|W| of each row, f32[N]."""
    maxima = [part.abs().amax(1) for part in torch.split(weight, _ROWS_AT_ONCE)]
    return torch.cat(maxima)


def step_for_alive_rows(absmax: Tensor, share: float) -> float:
    """The step that keeps this share of the rows alive, at least one: half of it lies between two rows' max|W|."""
    num_rows = absmax.numel()
    wanted = min(max(round(share * num_rows), 1), num_rows)
    if wanted == num_rows:
        return float(absmax.min())
    ordered = np.partition(absmax.cpu().numpy(), (num_rows - wanted - 1, num_rows - wanted))
    return float(ordered[num_rows - wanted - 1]) + float(ordered[num_rows - wanted])


def select_width(quant: QuantConfig, tables: Tables) -> StepWidth | None:
    """None: width 1 throughout, as in the paper."""
    if quant.target_alive > 0:
        return TargetAlive(quant, tables)
    if set(quant.step_width) == {1.0}:
        return None
    widths = torch.tensor(quant.step_width, device=tables.weight.device).expand(tables.num_tables)
    return Ramp(widths, quant.step_width_ramp_steps)
