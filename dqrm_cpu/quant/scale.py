"""The per-table symmetric scale: how it is found, and how long it is kept (paper 3.2)."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dqrm_cpu.config import QuantConfig
from dqrm_cpu.errors import TrainingError
from dqrm_cpu.kernels.interface import Kernels, Tracker
from dqrm_cpu.kernels.types import Tables

_SMALLEST_STEP = np.float32(1e-8)


def quantization_step(absmax: Tensor, bits: int) -> Tensor:
    """step = max|W| / (2^(bits - 1) - 1), never below 1e-8: an all-zero table must not divide by zero."""
    # NumPy: at a small batch the step of training would notice what torch takes for a few numbers.
    step = np.maximum(absmax.cpu().numpy() / np.float32(2 ** (bits - 1) - 1), _SMALLEST_STEP)
    return torch.from_numpy(step).to(absmax.device)


@dataclass(frozen=True)
class ScaleState:
    """The scale in use, per table."""

    absmax: Tensor  # f32[T]: max|W| when the scale was last found
    step: Tensor  # f32[T]
    refreshed_at: int  # iteration


class TableScales:
    """Holds the scale in use and finds it again every `scale_period` iterations, by a scan or from the tracker."""

    def __init__(self, quant: QuantConfig, kernels: Kernels, tables: Tables) -> None:
        self._quant = quant
        self.scan: Callable[[Tables], Tensor] = kernels.scan_absmax
        """How whole tables are read for max|W|, f32[T]."""
        self._tables = tables
        self._quantized = quant.method != "none"
        ones = torch.ones(tables.num_tables, device=tables.weight.device)
        self._state = ScaleState(ones, ones.clone(), -1)
        tracked = self._quantized and quant.scale_finder == "track"
        self.tracker: Tracker | None = kernels.make_tracker(tables) if tracked else None

    @property
    def state(self) -> ScaleState:
        return self._state

    def restore(self, state: ScaleState) -> None:
        """Continues from a checkpoint, whose tables are loaded already."""
        self._state = state
        self.tables_loaded()

    def tables_loaded(self) -> None:
        """Must follow any change of the tables beside the update kernels: the tracker saw none of it."""
        if self.tracker is not None:
            self.tracker.rebuild(self._tables)

    def for_training(self, iteration: int) -> Tensor:
        """The step f32[T] to use in this iteration, found again where the period says so."""
        if self._quantized and iteration % self._quant.scale_period == 0:
            absmax = self._find()
            self._state = ScaleState(absmax, quantization_step(absmax, self._quant.embedding_bits), iteration)
        return self._state.step

    def for_evaluation(self) -> Tensor:
        """The step f32[T] of the weights as they stand, which an exported model would use.

        Training's scale is left alone.
        """
        if not self._quantized:
            return self._state.step
        return quantization_step(self._find(), self._quant.embedding_bits)

    def _find(self) -> Tensor:
        absmax = self.tracker.absmax() if self.tracker is not None else self.scan(self._tables)
        finite = np.isfinite(absmax.cpu().numpy())
        if not finite.all():
            bad = ", ".join(f"C{t + 1}" for t, fine in enumerate(finite) if not fine)
            raise TrainingError(
                f"table {bad} holds NaN or infinite weights: training has diverged; "
                "go back to an earlier checkpoint with a lower --train.learning-rate or some --train.warmup-steps"
            )
        return absmax
