"""The width of the tables' scales: how much larger they are than those of max|W|. The same in all iterations, rising,
or such that a share of the rows stays alive.

A row is alive if any of its codes is not 0: if its own max|W| exceeds half of the scale. The wider the scale, the more
rows are exactly zero: they contribute nothing, and need not be stored.
"""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dqrm_cpu.config import QuantConfig
from dqrm_cpu.kernels.master_rows import blocks_of_values
from dqrm_cpu.kernels.table_groups import TableGroups
from dqrm_cpu.quant.scale_schedule import ramped_widths

_ROWS_AT_ONCE = 1 << 16


class ScaleWidth(Protocol):
    """A source of the widths f32[T] of the scales."""

    period: int
    """A width that was found may be used that many iterations."""

    def at(self, iteration: int, unit_scale: Tensor) -> Tensor:
        """Returns the widths of an iteration; unit_scale f32[T]: the scale of width 1 of the present weights."""


class Ramp:
    """Widths that go from 1 to the final ones in so many iterations; before any training they are the final ones."""

    period = 1

    def __init__(self, widths: Tensor, iterations: int) -> None:
        self._widths = widths
        self._iterations = iterations

    def at(self, iteration: int, unit_scale: Tensor) -> Tensor:
        return ramped_widths(self._widths, self._iterations, iteration)


class TargetAlive:
    """Widths, 1 or more, that leave a share of each table's rows alive; found from all of its rows."""

    def __init__(self, quant: QuantConfig, tables: TableGroups) -> None:
        self._share = quant.target_alive
        self._min_rows = quant.target_alive_min_rows
        self._tables = tables
        self.period = quant.target_alive_period

    def at(self, iteration: int, unit_scale: Tensor) -> Tensor:
        widths = torch.ones(self._tables.num_tables)
        for table, weight in enumerate(self._tables.weights):
            if weight.shape[0] >= self._min_rows:
                scale = scale_for_alive_rows(row_absmax(weight), self._share)
                widths[table] = max(scale / float(unit_scale[table]), 1.0)
        return widths.to(unit_scale.device)


def row_absmax(weight: Tensor) -> Tensor:
    """Returns max|W| of each row, f32[N]."""
    maxima = [part.abs().amax(1) for part in blocks_of_values(weight, _ROWS_AT_ONCE)]
    return torch.cat(maxima)


def scale_for_alive_rows(absmax: Tensor, share: float) -> float:
    """Finds the scale that keeps this share of the rows alive, at least one: half of it is between two rows' max|W|."""
    num_rows = absmax.numel()
    wanted = min(max(round(share * num_rows), 1), num_rows)
    if wanted == num_rows:
        return float(absmax.min())
    ordered = np.partition(absmax.cpu().numpy(), (num_rows - wanted - 1, num_rows - wanted))
    return float(ordered[num_rows - wanted - 1]) + float(ordered[num_rows - wanted])


def select_width(quant: QuantConfig, tables: TableGroups) -> ScaleWidth | None:
    """Returns what the configuration asks for; None: width 1 throughout, as in the paper."""
    if quant.target_alive > 0:
        return TargetAlive(quant, tables)
    if set(quant.step_width) == {1.0}:
        return None
    widths = torch.tensor(quant.step_width, device=tables.device).expand(tables.num_tables)
    return Ramp(widths, quant.step_width_ramp_steps)
