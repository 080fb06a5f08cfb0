"""Scales that a method learns: parameters beside the weights, 0 until quantization-aware training begins.

They are laid out in one flat buffer: of the tables, then of each matrix. Before they begin, whatever asks for them gets
where training would start from the weights as they stand.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dqrm_cpu.kernels.interface import Tracker
from dqrm_cpu.kernels.table_groups import TableGroups
from dqrm_cpu.kernels.types import SparseGrad, Tables
from dqrm_cpu.quant.formula import SMALLEST_SCALE, LearnedScale
from dqrm_cpu.quant.scale import ScaleState, require_finite

_FLOATS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class LearnedScales:
    """Scales, or their gradients: views of a flat buffer f32[P], which is empty where nothing is learned."""

    flat: Tensor
    tables: Tensor  # f32[T]
    matrices: tuple[Tensor, ...]  # f32[rows, 1] each, or f32[1, 1]

    @property
    def begun(self) -> bool:
        """Whether training has begun to learn the scales; no scale is 0 afterwards."""
        return bool(self.flat.any())


def split_scales(flat: Tensor, num_tables: int, matrix_scales: Sequence[int]) -> LearnedScales:
    """Splits `flat` into views; `matrix_scales`: how many scales each matrix has."""
    if flat.numel() == 0:
        return LearnedScales(flat, flat, ())
    tables, *matrices = torch.split(flat, [num_tables, *matrix_scales])
    return LearnedScales(flat, tables, tuple(matrix.view(-1, 1) for matrix in matrices))


class LearnedTableScales:
    """The tables' scales where they are learned parameters; a `scale.Scales`."""

    trackers: tuple[Tracker | None, ...]

    def __init__(self, formula: LearnedScale, tables: TableGroups, scales: LearnedScales) -> None:
        self._formula = formula
        self.trackers = (None,) * len(tables)
        self._tables = tables
        self._scales = scales

    @property
    def state(self) -> ScaleState:
        return ScaleState(self._scales.tables, self._scales.tables, -1)

    def for_training(self, iteration: int) -> Tensor:
        return self._scales.tables

    def for_evaluation(self, at_least: Tensor | None = None) -> Tensor:
        return self._scales.tables if self._scales.begun else initial_table_scales(self._formula, self._tables)

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def restore(self, tensors: Mapping[str, Tensor], refreshed_at: int) -> None:
        pass  # the model holds them, and was loaded with its weights

    def tables_loaded(self, refreshed_at: int = -1) -> None:
        pass  # nothing follows the tables


def initial_table_scales(formula: LearnedScale, tables: TableGroups) -> Tensor:
    """Returns where the tables' learned scales f32[T] start, from the weights as they stand."""
    absmax, absmean = torch.zeros(2, tables.num_tables, device=tables.device)
    for t, weight in enumerate(tables.weights):
        absmax[t], absmean[t] = _magnitudes(weight)
    require_finite(absmax)
    return formula.initial_scale(absmax, absmean).clamp(min=float(SMALLEST_SCALE))


def initial_matrix_scales(formula: LearnedScale, matrix: Tensor) -> Tensor:
    """Returns where the learned scales f32[N, 1] of a matrix f32[N, D] start."""
    magnitude = matrix.abs()
    return formula.initial_scale(magnitude.amax(1, keepdim=True), magnitude.mean(1, keepdim=True)).clamp(
        min=float(SMALLEST_SCALE)
    )


def table_scale_gradient(formula: LearnedScale, tables: Tables, grad: SparseGrad, of_scale: Tensor) -> Tensor:
    """Sums the gradient by element f32[N, D] of the rows in `grad` to f32[T]: all weights of a table share a scale."""
    # In FP64 and in order: the sum must not depend on the number of threads.
    running = torch.nn.functional.pad(of_scale.sum(1, dtype=torch.float64).cumsum(0), (1, 0))
    pointer = grad.table_ptr.to(running.device)
    summed = running[pointer[1:]] - running[pointer[:-1]]
    return (summed * _factors(formula, tables).to(summed.device)).float()


def matrix_scale_gradient(formula: LearnedScale, of_scale: Tensor, scales: Tensor) -> Tensor:
    """Sums the gradient by element f32[rows, D] to the shape of `scales`, f32[rows, 1] or f32[1, 1]."""
    by_row = of_scale.sum(1, keepdim=True, dtype=torch.float64)
    summed = by_row if scales.numel() == by_row.numel() else by_row.sum(0, keepdim=True)
    return (summed * formula.gradient_factor(of_scale.numel() // scales.numel())).float()


def _factors(formula: LearnedScale, tables: Tables) -> Tensor:
    sizes = (tables.row_offset.diff() * tables.dim).tolist()
    return torch.tensor([formula.gradient_factor(max(size, 1)) for size in sizes], dtype=torch.float64)


def _magnitudes(weight: Tensor) -> tuple[float, float]:
    """Returns max|W| and mean|W|."""
    largest, total = 0.0, 0.0
    for part in _parts(weight):
        largest = max(largest, float(part.amax())) if not bool(part.isnan().any()) else float("nan")
        total += float(part.sum(dtype=torch.float64))
    return largest, total / max(weight.numel(), 1)


def _parts(weight: Tensor) -> Iterator[Tensor]:
    for part in torch.split(weight.reshape(-1), _FLOATS_AT_ONCE):
        yield part.abs()
