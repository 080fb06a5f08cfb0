"""SGD (the paper's) and Adagrad (row-wise on the tables), each for tables and MLPs together."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from dqrm_cpu.config import TrainConfig
from dqrm_cpu.kernels.interface import Kernels, Tracker
from dqrm_cpu.kernels.types import Bags, SparseGrad, Tables
from dqrm_cpu.model.dlrm import Dlrm

_ADAGRAD_EPS = 1e-8
_SMALLEST_SCALE = 1e-8  # a learned scale that reached 0 would look as if it had not begun


class Optimizer(Protocol):
    """Changes the weights in place; `lr` comes from the schedule at each step."""

    def update_tables(self, bags: Bags, grad_features: Tensor, lr: float, tracker: Tracker | None) -> None:
        """One process: straight from the pooled gradient, never built as a sparse one."""

    def apply_tables(self, grad: SparseGrad, lr: float, tracker: Tracker | None) -> None:
        """Several ranks: from the merged gradient."""

    def update_dense(self, grad: Tensor, lr: float) -> None:
        """MLPs, from a flat gradient; may use `grad` as scratch."""

    def update_scales(self, grad: Tensor, lr: float) -> None:
        """Learned scales of a quantizer, once training has them; may use `grad` as scratch."""

    def state(self) -> Mapping[str, Tensor]:
        """What a checkpoint must hold beside the weights."""


class Sgd:
    """w -= lr (g + weight_decay w)."""

    def __init__(self, model: Dlrm, weight_decay: float) -> None:
        self._kernels: Kernels = model.kernels
        self._tables: Tables = model.tables
        self._dense = model.dense
        self._scales = model.scales
        self._weight_decay = weight_decay

    def update_tables(self, bags: Bags, grad_features: Tensor, lr: float, tracker: Tracker | None) -> None:
        self._kernels.update_sgd_(self._tables, bags, grad_features, lr, self._weight_decay, tracker)

    def apply_tables(self, grad: SparseGrad, lr: float, tracker: Tracker | None) -> None:
        self._kernels.apply_sgd_(self._tables, grad, lr, self._weight_decay, tracker)

    def update_dense(self, grad: Tensor, lr: float) -> None:
        if self._weight_decay:
            grad.add_(self._dense, alpha=self._weight_decay)
        self._dense.add_(grad, alpha=-lr)

    def update_scales(self, grad: Tensor, lr: float) -> None:
        scales = self._scales
        if scales.begun:
            scales.flat.sub_(grad.add_(scales.flat, alpha=self._weight_decay), alpha=lr).clamp_(min=_SMALLEST_SCALE)

    def state(self) -> Mapping[str, Tensor]:
        return {}


class RowwiseAdagrad:
    """One accumulator per table row (mean squared gradient), one per MLP parameter."""

    def __init__(self, model: Dlrm, weight_decay: float) -> None:
        self._kernels: Kernels = model.kernels
        self._tables: Tables = model.tables
        self._dense = model.dense
        self._scales = model.scales
        self._weight_decay = weight_decay
        self._rows = torch.zeros(model.tables.weight.shape[0], device=model.device)
        self._dense_sum = torch.zeros_like(model.dense)
        self._scales_sum = torch.zeros_like(model.scales.flat)

    def update_tables(self, bags: Bags, grad_features: Tensor, lr: float, tracker: Tracker | None) -> None:
        self._kernels.update_rowwise_adagrad_(
            self._tables, self._rows, bags, grad_features, lr, _ADAGRAD_EPS, self._weight_decay, tracker
        )

    def apply_tables(self, grad: SparseGrad, lr: float, tracker: Tracker | None) -> None:
        self._kernels.apply_rowwise_adagrad_(
            self._tables, self._rows, grad, lr, _ADAGRAD_EPS, self._weight_decay, tracker
        )

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

    def state(self) -> Mapping[str, Tensor]:
        of_scales = {"optimizer.scales": self._scales_sum} if self._scales_sum.numel() else {}
        return {"optimizer.rows": self._rows, "optimizer.dense": self._dense_sum, **of_scales}


def select_optimizer(config: TrainConfig, model: Dlrm) -> Optimizer:
    """`sgd` or `rowwise-adagrad`, as the configuration names them."""
    if config.optimizer == "sgd":
        return Sgd(model, config.weight_decay)
    return RowwiseAdagrad(model, config.weight_decay)
