"""Binary cross-entropy of click logits and its gradient."""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits


def click_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over the batch, a scalar; stable for large logits."""
    return binary_cross_entropy_with_logits(logits, labels, reduction="sum")


def click_loss_gradient(logits: Tensor, labels: Tensor, global_batch: int) -> Tensor:
    """Gradient f32[B] of the loss averaged over the global batch, of which these examples are a part."""
    return torch.sigmoid(logits).sub_(labels).mul_(1.0 / global_batch)
