"""SGD (the paper's) and Adagrad (row-wise on the tables), for tables and MLPs together, and their learning rate."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dqrm_cpu.config import TrainConfig
from dqrm_cpu.errors import ConfigError
from dqrm_cpu.kernels.interface import Kernels, Tracker
from dqrm_cpu.kernels.table_groups import TableGroups
from dqrm_cpu.kernels.types import Bags, RowIntervals, SparseGrad, UpdateRule
from dqrm_cpu.model.dlrm import Dlrm

LAST_UPDATES = "optimizer.last"
"""The tensor of a checkpoint with the iteration of the last update of each row, where rows shrink by it."""

_ADAGRAD_EPS = 1e-8
_SMALLEST_SCALE = 1e-8  # a learned scale that reached 0 would look as if it had not begun


class Optimizer(Protocol):
    """Changes the weights in place; `lr` comes from the schedule at each step."""

    def update_tables(
        self,
        bags: Sequence[Bags],
        grads: Sequence[Tensor],
        lr: float,
        trackers: Sequence[Tracker | None],
        iteration: int,
    ) -> None:
        """Updates the tables of one process, straight from the pooled gradients, never built as sparse ones.

        Of these and what goes with them there is one for each group of tables. `iteration`: that of training, which
        rows of few bits are rounded by.
        """

    def apply_tables(
        self, grads: Sequence[SparseGrad], lr: float, trackers: Sequence[Tracker | None], iteration: int
    ) -> None:
        """Updates the tables of several ranks from the merged gradients of each group."""

    def update_dense(self, grad: Tensor, lr: float) -> None:
        """Updates the MLPs from a flat gradient; may use `grad` as scratch."""

    def update_scales(self, grad: Tensor, lr: float) -> None:
        """Updates learned scales of a quantizer, once training has them; may use `grad` as scratch."""

    def forget_rows(self, iteration: int) -> None:
        """Forgets what it knows of the rows of tables, which begin anew before an iteration."""

    def state(self) -> Mapping[str, Tensor]:
        """Returns what a checkpoint must hold beside the weights."""


class _TableUpdates(ABC):
    """Updates the tables group by group; subclasses say by which rule."""

    def __init__(self, model: Dlrm, interval_decay: float) -> None:
        self._kernels: Kernels = model.kernels
        self._groups: TableGroups = model.groups
        self._row_chances = model.row_chances
        self._interval_decay = interval_decay
        rows = [group.tables.weight.shape[0] for group in model.groups] if interval_decay else []
        self._last = [torch.zeros(count, dtype=torch.int32, device=model.device) for count in rows]

    @abstractmethod
    def _rule(self, lr: float, group: int) -> UpdateRule:
        """Returns the rule that updates the rows of a group, but for chances and intervals."""

    def _rules(self, lr: float, iteration: int) -> list[UpdateRule]:
        rules = [
            self._rule(lr, number)._replace(chances=chances)
            for number, chances in enumerate(self._row_chances(iteration))
        ]
        if not self._last:
            return rules
        return [
            rule._replace(intervals=RowIntervals(self._interval_decay, last, iteration + 1))
            for rule, last in zip(rules, self._last, strict=True)
        ]

    def forget_rows(self, iteration: int) -> None:
        """Forgets what is known of the rows of tables, which begin anew before an iteration."""
        for last in self._last:
            last.fill_(iteration)

    def state(self) -> Mapping[str, Tensor]:
        """Returns what a checkpoint must hold beside the weights."""
        return dict(zip(self._groups.names(LAST_UPDATES), self._last, strict=True)) if self._last else {}

    def update_tables(
        self,
        bags: Sequence[Bags],
        grads: Sequence[Tensor],
        lr: float,
        trackers: Sequence[Tracker | None],
        iteration: int,
    ) -> None:
        parts = zip(self._groups, bags, grads, self._rules(lr, iteration), trackers, strict=True)
        for group, own, grad, rule, tracker in parts:
            self._kernels.update_(group.tables, own, grad, rule, tracker)

    def apply_tables(
        self, grads: Sequence[SparseGrad], lr: float, trackers: Sequence[Tracker | None], iteration: int
    ) -> None:
        for group, grad, rule, tracker in zip(self._groups, grads, self._rules(lr, iteration), trackers, strict=True):
            self._kernels.update_sparse_(group.tables, grad, rule, tracker)


class Sgd(_TableUpdates):
    """The optimizer w -= lr (g + weight_decay w)."""

    def __init__(self, model: Dlrm, weight_decay: float, interval_decay: float = 0.0) -> None:
        super().__init__(model, interval_decay)
        self._dense = model.dense
        self._scales = model.scales
        self._weight_decay = weight_decay

    def _rule(self, lr: float, group: int) -> UpdateRule:
        return UpdateRule(lr, self._weight_decay)

    def update_dense(self, grad: Tensor, lr: float) -> None:
        if self._weight_decay:
            grad.add_(self._dense, alpha=self._weight_decay)
        self._dense.add_(grad, alpha=-lr)

    def update_scales(self, grad: Tensor, lr: float) -> None:
        scales = self._scales
        if scales.begun:
            scales.flat.sub_(grad.add_(scales.flat, alpha=self._weight_decay), alpha=lr).clamp_(min=_SMALLEST_SCALE)


class RowwiseAdagrad(_TableUpdates):
    """Adagrad with one accumulator per table row (mean squared gradient), and one per MLP parameter."""

    def __init__(self, model: Dlrm, weight_decay: float, interval_decay: float = 0.0) -> None:
        super().__init__(model, interval_decay)
        self._dense = model.dense
        self._scales = model.scales
        self._weight_decay = weight_decay
        self._rows = [torch.zeros(group.tables.weight.shape[0], device=model.device) for group in model.groups]
        self._dense_sum = torch.zeros_like(model.dense)
        self._scales_sum = torch.zeros_like(model.scales.flat)

    def _rule(self, lr: float, group: int) -> UpdateRule:
        return UpdateRule(lr, self._weight_decay, _ADAGRAD_EPS, self._rows[group])

    def update_dense(self, grad: Tensor, lr: float) -> None:
        if self._weight_decay:
            grad.add_(self._dense, alpha=self._weight_decay)
        self._dense_sum.addcmul_(grad, grad)
        self._dense.addcdiv_(grad, self._dense_sum.sqrt().add_(_ADAGRAD_EPS), value=-lr)

    def update_scales(self, grad: Tensor, lr: float) -> None:
        scales = self._scales
        if scales.begun:
            grad.add_(scales.flat, alpha=self._weight_decay)
            self._scales_sum.addcmul_(grad, grad)
            scales.flat.addcdiv_(grad, self._scales_sum.sqrt().add_(_ADAGRAD_EPS), value=-lr)
            scales.flat.clamp_(min=_SMALLEST_SCALE)

    def forget_rows(self, iteration: int) -> None:
        super().forget_rows(iteration)
        for sums in self._rows:
            sums.zero_()

    def state(self) -> Mapping[str, Tensor]:
        of_scales = {"optimizer.scales": self._scales_sum} if self._scales_sum.numel() else {}
        of_rows = dict(zip(self._groups.names("optimizer.rows"), self._rows, strict=True))
        return {**super().state(), **of_rows, "optimizer.dense": self._dense_sum, **of_scales}


def select_optimizer(config: TrainConfig, model: Dlrm) -> Optimizer:
    """Makes `sgd` or `rowwise-adagrad`, as the configuration names them."""
    kind = Sgd if config.optimizer == "sgd" else RowwiseAdagrad
    return kind(model, config.weight_decay, config.interval_decay)


@dataclass(frozen=True)
class LearningRate:
    """The learning rate as a pure function of the step, so that a resumed run goes on with the rate it would have had.

    Steps count from 1. With warmup_steps W: base / W at step 1, base from step W on. With decay_steps D > 0:
    base ((E - step) / D)^2 from decay_start_step to E = decay_start_step + D, then the last rate above 0.
    """

    base: float
    warmup_steps: int = 0
    decay_start_step: int = 0
    decay_steps: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.base < float("inf"):
            raise ConfigError(f"the learning rate is {self.base}; give a finite rate above 0")
        for name in ("warmup_steps", "decay_start_step", "decay_steps"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; give 0 or more")
        if self.decay_steps and self.decay_start_step < self.warmup_steps:
            raise ConfigError(
                f"the learning rate would decay from step {self.decay_start_step} on, before its warm-up ends at step "
                f"{self.warmup_steps}; raise decay_start_step or lower warmup_steps"
            )

    def at(self, step: int) -> float:
        """Returns the rate for the step that counts as `step`, from 1."""
        if step < 1:
            raise ValueError(f"steps count from 1, not {step}")
        if step < self.warmup_steps:
            return self.base * (step / self.warmup_steps)
        if not self.decay_steps or step < self.decay_start_step:
            return self.base
        left = max(self.decay_start_step + self.decay_steps - step, 1)
        return self.base * min(left / self.decay_steps, 1.0) ** 2
