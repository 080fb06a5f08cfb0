"""Buffers of one forward and backward pass, allocated once for the largest batch and sliced for smaller ones."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dqrm_cpu.kernels.table_groups import TableGroups
from dqrm_cpu.kernels.validate import runs_are_finite
from dqrm_cpu.model.layers import LayerParameters, split_parameters
from dqrm_cpu.model.shapes import MlpShapes, ScaleCounts
from dqrm_cpu.quant.learned import LearnedScales, split_scales


@dataclass(frozen=True)
class Workspace:
    """Buffers between a model's parts. F = 1 + T feature vectors per example; slot 0 is the bottom MLP's output.

    Those, what the interaction makes of them and their gradient are FP32 or BF16, as the MLPs' products. What is pooled
    goes straight into the feature vectors unless some table has another dimension than they.
    """

    features: Tensor  # [B, F, D]
    pooled: tuple[Tensor, ...]  # of each group [B, 1 + tables, its dimension], slot 0 unused; or `features` itself
    interaction: Tensor  # [B, W]: the top MLP's input
    grad_features: Tensor  # [B, F, D]
    grad_pooled: tuple[Tensor, ...]
    grad_logits: Tensor  # f32[B]

    def first(self, size: int) -> "Workspace":
        """Returns the same buffers for a batch of `size` examples; still contiguous."""
        if size == self.features.shape[0]:
            return self
        return Workspace(
            self.features[:size],
            tuple(part[:size] for part in self.pooled),
            self.interaction[:size],
            self.grad_features[:size],
            tuple(part[:size] for part in self.grad_pooled),
            self.grad_logits[:size],
        )


def allocate_workspace(batch: int, groups: TableGroups, dim: int, width: int, dtype: torch.dtype) -> Workspace:
    """Allocates a workspace for batches of up to `batch` examples, with feature vectors of `dim` values."""

    def vectors(num_tables: int, values: int) -> Tensor:
        return torch.zeros(batch, 1 + num_tables, values, dtype=dtype, device=groups.device)

    features, grad_features = (vectors(groups.num_tables, dim) for _ in range(2))
    pooled: tuple[Tensor, ...] = (features,)
    grad_pooled: tuple[Tensor, ...] = (grad_features,)
    if any(group.tables.dim != dim for group in groups):
        pooled, grad_pooled = (
            tuple(vectors(group.tables.num_tables, group.tables.dim) for group in groups) for _ in range(2)
        )
    interaction = torch.zeros(batch, width, dtype=dtype, device=groups.device)
    grad_logits = torch.zeros(batch, device=groups.device)
    return Workspace(features, pooled, interaction, grad_features, grad_pooled, grad_logits)


class DenseGradients:
    """Gradients of all dense layers in one flat buffer, with room behind them for what travels along in an exchange,
    exact: scalars, the maxima of the layers' inputs, and the gradients of learned scales."""

    NUM_SCALARS = 2

    def __init__(self, shapes: MlpShapes, num_inputs: int, scale_counts: ScaleCounts, device: torch.device) -> None:
        maxima = shapes.num_parameters + self.NUM_SCALARS
        behind = maxima + num_inputs
        self.flat = torch.zeros(behind + scale_counts.total, device=device)
        self.parameters = self.flat[: shapes.num_parameters]
        self.scalars = self.flat[shapes.num_parameters : maxima]
        self.loss, self.stop_requested = self.scalars.unbind()
        self.input_maxima = self.flat[maxima:behind]
        self.scales: LearnedScales = split_scales(self.flat[behind:], *scale_counts)
        layers = split_parameters(self.parameters, shapes.layers)
        self.bottom, self.projections, self.cross, self.top = shapes.by_part(layers)
        self._probed = _probed_runs(self.flat, layers, maxima)

    def are_finite(self) -> bool:
        """Tells whether no NaN or infinity went through the MLPs, though their rectifiers hide it from the loss.

        A NaN in one value that a layer read is in every row of the layer's weight gradient, and one in the gradient of
        an output is in that of its bias: the first row and the biases tell, at no cost that can be measured. Of a layer
        without bias all of the gradient is read.
        """
        return runs_are_finite(self.flat, *self._probed)


def _probed_runs(flat: Tensor, layers: Sequence[LayerParameters], scalars_end: int) -> tuple[Tensor, Tensor]:
    """Returns where in `flat` what is read of each layer, and what lies behind the scalars, begin and end."""
    runs = [
        (part.storage_offset(), part.storage_offset() + part.numel())
        for layer in layers
        for part in ((layer.weight[0], layer.bias) if layer.bias.numel() else (layer.weight,))
    ]
    first, after = torch.tensor([*runs, (scalars_end, flat.numel())], dtype=torch.int64).unbind(1)
    return first.contiguous(), after.contiguous()
