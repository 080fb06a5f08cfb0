"""What is made of an example's feature vectors before the top MLP: dot products, or one long vector, crossed or not."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from dqrm_cpu.kernels.interface import Kernels
from dqrm_cpu.model.layers import LayerParameters
from dqrm_cpu.model.linear_layers import LinearLayers


class Interaction(Protocol):
    """Maps features [B, F, D] to [B, width], and gradients back."""

    def forward(self, features: Tensor, out: Tensor) -> None:
        """Writes all of out."""

    def backward(self, features: Tensor, grad_out: Tensor, grad_features: Tensor) -> None:
        """Writes all of grad_features."""


class DotInteraction:
    """The bottom MLP's output, then the dot product of each pair below the diagonal."""

    def __init__(self, kernels: Kernels) -> None:
        self.forward = kernels.interaction_forward
        self.backward = kernels.interaction_backward


class CatInteraction:
    """All feature vectors one after the other."""

    def forward(self, features: Tensor, out: Tensor) -> None:
        out.copy_(features.reshape(out.shape))

    def backward(self, features: Tensor, grad_out: Tensor, grad_features: Tensor) -> None:
        grad_features.copy_(grad_out.view(features.shape))


def select_interaction(name: str, kernels: Kernels) -> Interaction:
    """Returns the interaction that the configuration names, `dot`, `cat`, or what a `cross` network reads."""
    return DotInteraction(kernels) if name == "dot" else CatInteraction()


class CrossNetwork(LinearLayers):
    """DCNv2's cross layers (arXiv 2008.13535), without any layer the identity.

        x_{l+1} = x_0 * (W_l x_l + b_l) + x_l        * by element; W_l whole, or of low rank: W_l = V_l U_l

    No layer is rectified. Products are in the precision of the MLPs, as what is added and multiplied is.
    """

    _first: Tensor  # x_0 of the latest forward

    def forward(self, first: Tensor) -> Tensor:
        """Maps x_0 [B, W] to x_L [B, W]; x_0 must stay as it is until the backward."""
        self._forget()
        self._first, x = first, first
        for matrices in self._layers():
            crossed = x
            for _ in matrices:
                crossed = self._apply(crossed)
            # Not addcmul: whether it rounds once or twice depends on where a thread's part of the tensor ends.
            x = torch.mul(first, crossed).add_(x)
        return x

    def backward(self, grad: Tensor, gradients: Sequence[LayerParameters], scale_gradients: Sequence[Tensor]) -> Tensor:
        """Writes the gradients of parameters and of learned scales; returns that of x_0 [B, W], may change `grad`."""
        if not self.shapes:
            return grad
        of_first = torch.zeros_like(grad)
        for matrices in reversed(self._layers()):
            of_first.add_(grad * self._outputs[matrices[-1]])
            through = grad * self._first
            for i in reversed(matrices):
                self._backward_layer(i, through, gradients)
                through = self._grad_input(i, through)
            grad.add_(through)
        self._complete(gradients, scale_gradients)
        return of_first.add_(grad)

    def _layers(self) -> list[range]:
        """Returns the numbers of the matrices of each cross layer: those of low rank come in pairs."""
        matrices = 1 if all(shape.has_bias for shape in self.shapes) else 2
        return [range(i, i + matrices) for i in range(0, len(self.shapes), matrices)]
