"""The tables' scales: how they are found, and how long they are kept (paper 3.2); or learned."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dqrm_cpu.config import QuantConfig
from dqrm_cpu.errors import TrainingError
from dqrm_cpu.kernels.interface import Kernels, Tracker
from dqrm_cpu.kernels.types import Tables
from dqrm_cpu.quant import finding
from dqrm_cpu.quant.formula import FoundScale
from dqrm_cpu.quant.select import found_formula
from dqrm_cpu.quant.uniform import quantization_step
from dqrm_cpu.quant.width import StepWidth, select_width

__all__ = ["ScaleState", "Scales", "TableScales", "quantization_step"]


@dataclass(frozen=True)
class ScaleState:
    """The scale in use, per table."""

    absmax: Tensor  # f32[T]: max|W| when the scale was last found
    step: Tensor  # f32[T]: what the method calls its scale; the quantization step, if it has one
    refreshed_at: int  # iteration
    width: Tensor | None = None  # f32[T]: how much wider than max|W| asks for


class Scales(Protocol):
    """The scales f32[T] of a training run."""

    tracker: Tracker | None

    @property
    def state(self) -> ScaleState: ...

    def for_training(self, iteration: int) -> Tensor:
        """Those to use in this iteration, which trains the quantized model."""

    def for_evaluation(self) -> Tensor:
        """Those of the weights as they stand, which an exported model would use; training's are left alone."""

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds beside the model's own."""

    def restore(self, tensors: Mapping[str, Tensor], refreshed_at: int) -> None:
        """Continues from a checkpoint, of which `tensors` were read; the tables are loaded already."""

    def tables_loaded(self, refreshed_at: int = -1) -> None:
        """Must follow any change of the tables beside the update kernels: the tracker saw none of it."""


class TableScales:
    """Found from max|W|, and again every `scale_period` iterations, by a scan or from the tracker."""

    def __init__(self, quant: QuantConfig, kernels: Kernels, tables: Tables) -> None:
        self._formula = found_formula(quant, quant.embedding_bits)
        self._kernels = kernels
        self.scan: Callable[[Tables], Tensor] = kernels.scan_absmax
        """How whole tables are read for max|W|, f32[T]."""
        self._tables = tables
        self._period = finding.period(quant)
        self._width = select_width(quant, tables)
        ones = torch.ones(tables.num_tables, device=tables.weight.device)
        self._state = ScaleState(ones, ones.clone(), -1, None if self._width is None else ones.clone())
        self.tracker: Tracker | None = kernels.make_tracker(tables) if finding.tracks(quant) else None

    @property
    def state(self) -> ScaleState:
        return self._state

    def tensors(self) -> dict[str, Tensor]:
        state = self._state
        width = {} if state.width is None else {"scales.width": state.width}
        return {"scales.absmax": state.absmax, "scales.step": state.step, **width}

    def restore(self, tensors: Mapping[str, Tensor], refreshed_at: int) -> None:
        absmax, step = tensors["scales.absmax"], tensors["scales.step"]
        self._state = ScaleState(absmax, step, refreshed_at, tensors.get("scales.width"))
        self.tables_loaded(refreshed_at)

    def tables_loaded(self, refreshed_at: int = -1) -> None:
        self._state = ScaleState(self._state.absmax, self._state.step, refreshed_at, self._state.width)
        if self.tracker is not None:
            self.tracker.rebuild(self._tables)

    def for_training(self, iteration: int) -> Tensor:
        """The step f32[T] to use in this iteration, found again where the period says so."""
        before = self._state
        # Not `iteration % period == 0`: that iteration may have been left out, for a batch that is not sound.
        due = before.refreshed_at < 0 or before.refreshed_at // self._period != iteration // self._period
        if self._formula is not None and (due or iteration % self._period == 0):
            absmax = self._find()
            step, width = self._scale_of(self._formula, absmax), None
            if self._width is not None:
                width = self._wider(self._width, iteration, step)
                step = step * width
            self._state = ScaleState(absmax, step, iteration, width)
        return self._state.step

    def for_evaluation(self) -> Tensor:
        if self._formula is None:
            return self._state.step
        step = self._scale_of(self._formula, self._find())
        return step if self._width is None else step * self._width.at(self._state.refreshed_at, step)

    def _wider(self, width: StepWidth, iteration: int, unit_step: Tensor) -> Tensor:
        """The width to use, found again where its own period says so."""
        before = self._state
        kept = before.refreshed_at >= 0 and before.refreshed_at // width.period == iteration // width.period
        return before.width if kept and before.width is not None else width.at(iteration, unit_step)

    def _find(self) -> Tensor:
        return self.tracker.absmax() if self.tracker is not None else self.scan(self._tables)

    def _scale_of(self, formula: FoundScale, absmax: Tensor) -> Tensor:
        if formula.is_step:
            # One call: after the products of a step all of Python is out of the caches, and each small one counts.
            step = torch.empty_like(absmax)
            if self._kernels.uniform_steps(absmax, formula.bits, step):
                return step
        require_finite(absmax)
        return formula.scale_of(absmax)


def require_finite(absmax: Tensor) -> None:
    """A table that holds NaN or an infinity cannot be quantized."""
    finite = np.isfinite(absmax.cpu().numpy())
    if not finite.all():
        bad = ", ".join(f"C{t + 1}" for t, fine in enumerate(finite) if not fine)
        raise TrainingError(
            f"table {bad} holds NaN or infinite weights: training has diverged; "
            "go back to an earlier checkpoint with a lower --train.learning-rate or some --train.warmup-steps"
        )
