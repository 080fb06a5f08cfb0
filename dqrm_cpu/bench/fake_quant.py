"""Fake quantization in plain PyTorch, straight-through gradient (paper 3.1): what peers use instead of our kernels."""

from typing import Any

import torch
from torch import Tensor

_SMALLEST_STEP = 1e-8


class _StraightThrough(torch.autograd.Function):
    """Round forward, identity backward."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, step: Tensor, limit: int) -> Tensor:
        return (values * (1 / step)).round_().clamp_(-limit, limit - 1).mul_(step)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0], None, None


def fake_quantize(values: Tensor, step: Tensor, bits: int) -> Tensor:
    """Values on the grid of `step`, which broadcasts."""
    quantized: Tensor = _StraightThrough.apply(values, step, 1 << (bits - 1))  # type: ignore[no-untyped-call]
    return quantized


def step_of(low: Tensor, high: Tensor, bits: int) -> Tensor:
    """Symmetric: from the larger magnitude of the smallest and the largest weight."""
    absmax = torch.maximum(-low, high)
    return (absmax / ((1 << (bits - 1)) - 1)).clamp_(min=_SMALLEST_STEP)


def fake_quantize_rows(weight: Tensor, bits: int) -> Tensor:
    """A step per output row, found anew."""
    low, high = torch.aminmax(weight.detach(), dim=1, keepdim=True)
    return fake_quantize(weight, step_of(low, high, bits), bits)
