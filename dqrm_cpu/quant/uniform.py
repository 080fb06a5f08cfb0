"""dqrm, hawq, ptq: symmetric uniform quantization, its step from max|W| (paper 3.1; HAWQ-V3, arXiv 2011.10680).

    step = max|W| / (2^(b - 1) - 1) * width
    w^   = clamp(round(w / step), -2^(b - 1), 2^(b - 1) - 1) * step

The gradient passes straight through. With the clip mask, a weight beyond the codes gets none.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dqrm_cpu.quant.formula import Grid, largest_code

SMALLEST_STEP = np.float32(1e-8)


def quantization_step(absmax: Tensor, bits: int) -> Tensor:
    """step = max|W| / (2^(bits - 1) - 1), never below 1e-8: an all-zero table must not divide by zero."""
    # NumPy: at a small batch the step of training would notice what torch takes for a few numbers.
    step = np.maximum(absmax.cpu().numpy() / np.float32(largest_code(bits)), SMALLEST_STEP)
    return torch.from_numpy(step).to(absmax.device)


def uniform_codes(weight: Tensor, step: Tensor, bits: int) -> Tensor:
    """clamp(round(w / step)), as the kernels compute it: by the reciprocal."""
    return torch.round(weight * torch.reciprocal(step)).clamp_(-largest_code(bits) - 1, largest_code(bits))


def beyond_codes(weight: Tensor, step: Tensor, bits: int) -> Tensor:
    """bool[N, D]: where round(w / step) is no code."""
    rounded = torch.round(weight * torch.reciprocal(step))
    return (rounded < -largest_code(bits) - 1) | (rounded > largest_code(bits))


@dataclass(frozen=True)
class StepFormula:
    """The scale is the step; gradients are a subclass's affair."""

    bits: int

    is_step = True

    def values(self, weight: Tensor, scale: Tensor) -> Tensor:
        return uniform_codes(weight, scale, self.bits).mul_(scale)

    def clipped(self, weight: Tensor, scale: Tensor) -> Tensor:
        return beyond_codes(weight, scale, self.bits)

    def codes(self, weight: Tensor, scale: Tensor) -> Tensor:
        return uniform_codes(weight, scale, self.bits)

    def grid(self, scale: Tensor) -> Grid:
        return Grid(scale, None)


@dataclass(frozen=True)
class Uniform(StepFormula):
    """The step follows from max|W|."""

    clip_mask: bool = False

    @property
    def straight_through(self) -> bool:
        return not self.clip_mask

    def scale_of(self, absmax: Tensor) -> Tensor:
        return quantization_step(absmax, self.bits)

    def backward_(self, weight: Tensor, scale: Tensor, grad: Tensor) -> Tensor | None:
        if self.clip_mask:
            grad.mul_(~self.clipped(weight, scale))
        return None
