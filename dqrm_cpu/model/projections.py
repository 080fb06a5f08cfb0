"""Tables of another dimension than the interaction's, projected to it (mixed dimensions, arXiv 1909.11810, section 3).

    feature_t = P_t sum of rows of t        P_t f32[D, D of the table], learned, no bias

Tables that have the interaction's dimension D go in as they are.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dqrm_cpu.kernels.table_groups import TableGroups
from dqrm_cpu.model.activations import ReadInput
from dqrm_cpu.model.gemm import Gemm
from dqrm_cpu.model.layers import LayerParameters
from dqrm_cpu.model.linear_layers import LinearLayers
from dqrm_cpu.model.mlp_weights import MakeWeights, WeightSource


class _Place(NamedTuple):
    """The place of a projected table's pooled vectors, before and after the projection."""

    group: int
    slot: int  # in the group's vectors
    feature: int  # in those of the interaction


class Projections(LinearLayers):
    """The way from pooled vectors of each dimension to feature vectors; without layers there is nothing to do."""

    def __init__(
        self,
        source: WeightSource,
        quantized: MakeWeights | None,
        gemm: Gemm,
        read_input: ReadInput,
        groups: TableGroups,
        projected: Sequence[int],
    ) -> None:
        """`projected`: the numbers of the tables that have the layers, in their order."""
        super().__init__(source, quantized, gemm, read_input)
        places = {
            number: _Place(at, 1 + slot, 1 + number)
            for at, group in enumerate(groups)
            for slot, number in enumerate(group.numbers)
        }
        self._places = [places[number] for number in projected]
        self._copied = [
            (at, torch.tensor([1 + number for number in group.numbers], device=groups.device))
            for at, group in enumerate(groups)
            if not set(group.numbers) & set(projected)
        ]

    def forward(self, pooled: Sequence[Tensor], features: Tensor) -> None:
        """Writes features[:, 1:, :] of [B, F, D] from what was pooled in each group."""
        self._forget()
        if not self.shapes:
            return
        for group, slots in self._copied:
            features.index_copy_(1, slots, pooled[group][:, 1:])
        for place in self._places:
            features[:, place.feature] = self._apply(pooled[place.group][:, place.slot].contiguous())

    def backward(
        self,
        grad_features: Tensor,
        grad_pooled: Sequence[Tensor],
        gradients: Sequence[LayerParameters],
        scale_gradients: Sequence[Tensor],
    ) -> None:
        """Writes the gradients of what was pooled, of parameters and of learned scales."""
        if not self.shapes:
            return
        for group, slots in self._copied:
            grad_pooled[group][:, 1:] = grad_features.index_select(1, slots)
        for i, place in enumerate(self._places):
            grad = grad_features[:, place.feature].contiguous()
            self._backward_layer(i, grad, gradients)
            grad_pooled[place.group][:, place.slot] = self._grad_input(i, grad)
        self._complete(gradients, scale_gradients)
