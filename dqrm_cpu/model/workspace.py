"""Buffers of one forward and backward pass, allocated once for the largest batch and sliced for smaller ones."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Workspace:
    """F = 1 + T feature vectors per example; slot 0 is the bottom MLP's output.

    Those, what the interaction makes of them and their gradient are FP32 or BF16, as the MLPs' products.
    """

    features: Tensor  # [B, F, D]
    interaction: Tensor  # [B, W]: the top MLP's input
    grad_features: Tensor  # [B, F, D]
    grad_logits: Tensor  # f32[B]

    def first(self, size: int) -> "Workspace":
        """The same buffers for a batch of `size` examples; still contiguous."""
        if size == self.features.shape[0]:
            return self
        parts = self.features, self.interaction, self.grad_features, self.grad_logits
        return Workspace(*(part[:size] for part in parts))


def allocate_workspace(
    batch: int, num_features: int, dim: int, width: int, dtype: torch.dtype, device: torch.device
) -> Workspace:
    """A workspace for batches of up to `batch` examples."""
    return Workspace(
        torch.zeros(batch, num_features, dim, dtype=dtype, device=device),
        torch.zeros(batch, width, dtype=dtype, device=device),
        torch.zeros(batch, num_features, dim, dtype=dtype, device=device),
        torch.zeros(batch, device=device),
    )
