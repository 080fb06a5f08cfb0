"""Activations: what the layers of the MLPs read, fake-quantized; one step per tensor, from max|x|, straight through.

    after a rectifier   step = max x / (2^b - 1)           x^ = clamp(round(x / step), 0, 2^b - 1) * step
    elsewhere           step = max|x| / (2^(b - 1) - 1)    x^ = clamp(round(x / step), -2^(b - 1), 2^(b - 1) - 1) * step

Uniform as the weights are, whatever their method. Under the maximum of its own tensor no value is clipped, so that the
straight-through gradient is that of the identity.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dqrm_cpu.quant.formula import largest_code
from dqrm_cpu.quant.uniform import SMALLEST_STEP


@dataclass(frozen=True)
class ActivationFormula:
    """Of one tensor; `signed` unless it comes out of a rectifier."""

    bits: int
    signed: bool

    @property
    def codes(self) -> tuple[int, int]:
        """The smallest and the largest."""
        largest = largest_code(self.bits)
        return (-largest - 1, largest) if self.signed else (0, 2**self.bits - 1)

    def absmax(self, x: Tensor) -> Tensor:
        """f32[], NaN where x holds one."""
        if not self.signed:
            return x.amax().float()
        low, high = torch.aminmax(x)
        return torch.maximum(-low, high).float()

    def step(self, absmax: Tensor) -> Tensor:
        """Never below 1e-8: of a layer whose inputs are all 0."""
        return (absmax / self.codes[1]).clamp_(min=float(SMALLEST_STEP))

    def values(self, x: Tensor, step: Tensor) -> Tensor:
        """In the precision of x, step f32[]."""
        return torch.round(x.float() * torch.reciprocal(step)).clamp_(*self.codes).mul_(step).to(x.dtype)
