"""How the feature vectors of an example meet before the top MLP: pairwise dot products, or side by side."""

from typing import Protocol

from torch import Tensor

from dqrm_cpu.kernels.interface import Kernels


class Interaction(Protocol):
    """features [B, F, D] to [B, width] and back."""

    width: int

    def forward(self, features: Tensor, out: Tensor) -> None:
        """Writes all of out."""

    def backward(self, features: Tensor, grad_out: Tensor, grad_features: Tensor) -> None:
        """Writes all of grad_features."""


class DotInteraction:
    """The bottom MLP's output, then the dot of each pair below the diagonal."""

    def __init__(self, kernels: Kernels, num_features: int, dim: int) -> None:
        self.width = dim + num_features * (num_features - 1) // 2
        self.forward = kernels.interaction_forward
        self.backward = kernels.interaction_backward


class CatInteraction:
    """All feature vectors one after the other."""

    def __init__(self, num_features: int, dim: int) -> None:
        self.width = num_features * dim

    def forward(self, features: Tensor, out: Tensor) -> None:
        out.copy_(features.reshape(out.shape))

    def backward(self, features: Tensor, grad_out: Tensor, grad_features: Tensor) -> None:
        grad_features.copy_(grad_out.view(features.shape))


def select_interaction(name: str, kernels: Kernels, num_features: int, dim: int) -> Interaction:
    """`dot` or `cat`, as the configuration names them."""
    return DotInteraction(kernels, num_features, dim) if name == "dot" else CatInteraction(num_features, dim)
