"""Scales that a method learns: parameters beside the weights, 0 until quantization-aware training begins.

They are laid out in one flat buffer: of the tables, then of each matrix. Before they begin, whatever asks for them gets
where training would start from the weights as they stand.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from dqrm_cpu.kernels.interface import Tracker
from dqrm_cpu.kernels.types import SparseGrad, Tables
from dqrm_cpu.quant.formula import LearnedScale
from dqrm_cpu.quant.scale import ScaleState, require_finite
from dqrm_cpu.quant.uniform import SMALLEST_STEP

_FLOATS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class LearnedScales:
    """Scales, or their gradients: views of a flat buffer f32[P], which is empty where nothing is learned."""

    flat: Tensor
    tables: Tensor  # f32[T]
    matrices: tuple[Tensor, ...]  # f32[rows, 1] each, or f32[1, 1]

    @property
    def begun(self) -> bool:
        """Whether training has them; no scale is 0 afterwards."""
        return bool(self.flat.any())


def split_scales(flat: Tensor, num_tables: int, matrix_scales: Sequence[int]) -> LearnedScales:
    """`matrix_scales`: how many each matrix has."""
    if flat.numel() == 0:
        return LearnedScales(flat, flat, ())
    tables, *matrices = torch.split(flat, [num_tables, *matrix_scales])
    return LearnedScales(flat, tables, tuple(matrix.view(-1, 1) for matrix in matrices))


class LearnedTableScales:
    """Implements `scale.Scales` over learned parameters."""

    tracker: Tracker | None = None

    def __init__(self, formula: LearnedScale, tables: Tables, scales: LearnedScales) -> None:
        self._formula = formula
        self._tables = tables
        self._scales = scales

    @property
    def state(self) -> ScaleState:
        return ScaleState(self._scales.tables, self._scales.tables, -1)

    def for_training(self, iteration: int) -> Tensor:
        return self._scales.tables

    def for_evaluation(self) -> Tensor:
        return self._scales.tables if self._scales.begun else initial_table_scales(self._formula, self._tables)

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def restore(self, tensors: Mapping[str, Tensor], refreshed_at: int) -> None:
        pass  # the model holds them, and was loaded with its weights

    def tables_loaded(self, refreshed_at: int = -1) -> None:
        pass  # nothing follows the tables


def initial_table_scales(formula: LearnedScale, tables: Tables) -> Tensor:
    """f32[T]"""
    absmax, absmean = torch.zeros(2, tables.num_tables, device=tables.weight.device)
    for t, (first, end) in enumerate(pairwise(tables.row_offset.tolist())):
        absmax[t], absmean[t] = _magnitudes(tables.weight[first:end])
    require_finite(absmax)
    return formula.initial_scale(absmax, absmean).clamp(min=float(SMALLEST_STEP))


def initial_matrix_scales(formula: LearnedScale, matrix: Tensor) -> Tensor:
    """f32[N, 1] of a matrix f32[N, D]."""
    magnitude = matrix.abs()
    return formula.initial_scale(magnitude.amax(1, keepdim=True), magnitude.mean(1, keepdim=True)).clamp(
        min=float(SMALLEST_STEP)
    )


def table_scale_gradient(formula: LearnedScale, tables: Tables, grad: SparseGrad, of_scale: Tensor) -> Tensor:
    """f32[T] from the gradient by element f32[N, D] of the rows in `grad`; all weights of a table share a scale."""
    # In FP64 and in order: the sum must not depend on the number of threads.
    running = torch.nn.functional.pad(of_scale.sum(1, dtype=torch.float64).cumsum(0), (1, 0))
    pointer = grad.table_ptr.to(running.device)
    summed = running[pointer[1:]] - running[pointer[:-1]]
    return (summed * _factors(formula, tables).to(summed.device)).float()


def matrix_scale_gradient(formula: LearnedScale, of_scale: Tensor, scales: Tensor) -> Tensor:
    """Shaped as `scales` f32[rows, 1] or f32[1, 1], from the gradient by element f32[rows, D]."""
    by_row = of_scale.sum(1, keepdim=True, dtype=torch.float64)
    summed = by_row if scales.numel() == by_row.numel() else by_row.sum(0, keepdim=True)
    return (summed * formula.gradient_factor(of_scale.numel() // scales.numel())).float()


def _factors(formula: LearnedScale, tables: Tables) -> Tensor:
    sizes = (tables.row_offset.diff() * tables.dim).tolist()
    return torch.tensor([formula.gradient_factor(max(size, 1)) for size in sizes], dtype=torch.float64)


def _magnitudes(weight: Tensor) -> tuple[float, float]:
    """max|W| and mean|W|."""
    largest, total = 0.0, 0.0
    for part in _parts(weight):
        largest = max(largest, float(part.amax())) if not bool(part.isnan().any()) else float("nan")
        total += float(part.sum(dtype=torch.float64))
    return largest, total / max(weight.numel(), 1)


def _parts(weight: Tensor) -> Iterator[Tensor]:
    for part in torch.split(weight.reshape(-1), _FLOATS_AT_ONCE):
        yield part.abs()
