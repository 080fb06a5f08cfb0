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
from dqrm_cpu.kernels.table_groups import TableGroups
from dqrm_cpu.kernels.types import Tables
from dqrm_cpu.quant import scale_schedule
from dqrm_cpu.quant.formula import FoundScale
from dqrm_cpu.quant.methods import found_formula
from dqrm_cpu.quant.width import ScaleWidth, select_width


@dataclass(frozen=True)
class ScaleState:
    """The scales in use, one for each table."""

    absmax: Tensor  # f32[T]: max|W| when the scale was last found
    scale: Tensor  # f32[T]: as the method's formula understands it
    refreshed_at: int  # iteration
    width: Tensor | None = None  # f32[T]: how much wider than max|W| asks for


class Scales(Protocol):
    """The scales f32[T] of a training run, found or learned."""

    trackers: tuple[Tracker | None, ...]
    """What keeps max|W| of each group of tables while it is updated; None where nothing needs to."""

    @property
    def state(self) -> ScaleState: ...

    def for_training(self, iteration: int) -> Tensor:
        """Returns the scales to use in this iteration, which trains the quantized model."""

    def for_evaluation(self, at_least: Tensor | None = None) -> Tensor:
        """Returns the scales of the weights as they stand, as an exported model has them; training's are left alone.

        Every process calls it where each has some rows of the tables.

        Those that are found take max|W| of each table to be `at_least`, f32[T].
        """

    def tensors(self) -> dict[str, Tensor]:
        """Returns what a checkpoint holds beside the model's own tensors."""

    def restore(self, tensors: Mapping[str, Tensor], refreshed_at: int) -> None:
        """Continues from a checkpoint, of which `tensors` were read; the tables are loaded already."""

    def tables_loaded(self, refreshed_at: int = -1) -> None:
        """Follows any change of the tables beside the update kernels, of which the tracker saw nothing."""


class TableScales:
    """Scales found from max|W|, and again every `scale_period` iterations, by a scan or from the tracker."""

    def __init__(
        self,
        quant: QuantConfig,
        kernels: Kernels,
        tables: TableGroups,
        over_ranks: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """`over_ranks`: the largest f32[T] of all processes, where each has some rows; None: each has all of them."""
        self._over_ranks = over_ranks
        self._formula = found_formula(quant, quant.embedding_bits)
        self._kernels = kernels
        self.scan: Callable[[Tables], Tensor] = kernels.scan_absmax
        """How whole tables of one group are read for max|W|, f32[T]."""
        self._tables = tables
        self._period = scale_schedule.scale_period(quant)
        self._width = select_width(quant, tables)
        ones = torch.ones(tables.num_tables, device=tables.device)
        self._state = ScaleState(ones, ones.clone(), -1, None if self._width is None else ones.clone())
        tracked = scale_schedule.tracks_absmax(quant)
        self.trackers: tuple[Tracker | None, ...] = tuple(
            kernels.make_tracker(group.tables) if tracked else None for group in tables
        )

    @property
    def state(self) -> ScaleState:
        return self._state

    def tensors(self) -> dict[str, Tensor]:
        state = self._state
        width = {} if state.width is None else {"scales.width": state.width}
        return {"scales.absmax": state.absmax, "scales.step": state.scale, **width}

    def restore(self, tensors: Mapping[str, Tensor], refreshed_at: int) -> None:
        absmax, scale = tensors["scales.absmax"], tensors["scales.step"]
        self._state = ScaleState(absmax, scale, refreshed_at, tensors.get("scales.width"))
        self.tables_loaded(refreshed_at)

    def tables_loaded(self, refreshed_at: int = -1) -> None:
        self._state = ScaleState(self._state.absmax, self._state.scale, refreshed_at, self._state.width)
        for group, tracker in zip(self._tables, self.trackers, strict=True):
            if tracker is not None:
                tracker.rebuild(group.tables)

    def for_training(self, iteration: int) -> Tensor:
        """Returns the scales f32[T] of this iteration, found again where the period says so."""
        before = self._state
        # Not `iteration % period == 0`: that iteration may have been left out, for a batch that is not sound.
        due = before.refreshed_at < 0 or before.refreshed_at // self._period != iteration // self._period
        if self._formula is not None and (due or iteration % self._period == 0):
            absmax = self._find()
            scale, width = self._scale_of(self._formula, absmax), None
            if self._width is not None:
                width = self._wider(self._width, iteration, scale)
                scale = scale * width
            self._state = ScaleState(absmax, scale, iteration, width)
        return self._state.scale

    def for_evaluation(self, at_least: Tensor | None = None) -> Tensor:
        if self._formula is None:
            return self._state.scale
        absmax = self._find()
        scale = self._scale_of(self._formula, absmax if at_least is None else torch.maximum(absmax, at_least))
        return scale if self._width is None else scale * self._width.at(self._state.refreshed_at, scale)

    def _wider(self, width: ScaleWidth, iteration: int, unit_scale: Tensor) -> Tensor:
        """Returns the width to use, found again where its own period says so."""
        before = self._state
        kept = before.refreshed_at >= 0 and before.refreshed_at // width.period == iteration // width.period
        return before.width if kept and before.width is not None else width.at(iteration, unit_scale)

    def _find(self) -> Tensor:
        absmax = self._tables.join(
            [
                self.scan(group.tables) if tracker is None else tracker.absmax()
                for group, tracker in zip(self._tables, self.trackers, strict=True)
            ]
        )
        return absmax if self._over_ranks is None else self._over_ranks(absmax)

    def _scale_of(self, formula: FoundScale, absmax: Tensor) -> Tensor:
        if formula.has_fused_lookup:
            # One call: after the products of a step all of Python is out of the caches, and each small one counts.
            scale = torch.empty_like(absmax)
            if self._kernels.uniform_scales(absmax, formula.bits, scale):
                return scale
        require_finite(absmax)
        return formula.scale_of(absmax)


def require_finite(absmax: Tensor) -> None:
    """Raises TrainingError where a table holds NaN or an infinity: it cannot be quantized."""
    finite = np.isfinite(absmax.cpu().numpy())
    if not finite.all():
        bad = ", ".join(f"C{t + 1}" for t, fine in enumerate(finite) if not fine)
        raise TrainingError(
            f"table {bad} holds NaN or infinite weights: training has diverged; "
            "go back to an earlier checkpoint with a lower --train.learning-rate or some --train.warmup-steps"
        )
