"""pact: a learned clip (Choi et al., PACT, arXiv 1805.06085, equations 1 to 3), here of weights: clipped on both sides.

    step = a / (2^(b - 1) - 1)
    w^   = round(clamp(w, -a, a) / step) * step
    dw^/dw = 1 where |w| < a, else 0
    dw^/da = sign(w) where |w| >= a, else 0

PACT pulls `a` to 0 with the same L2 factor as the weights: train.weight_decay. `a` starts at max|W|, where nothing is
clipped yet. (The paper's own PACT has no learned clip: what its code runs under that name is `dorefa`.)
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dqrm_cpu.quant.formula import Grid, largest_code


@dataclass(frozen=True)
class Pact:
    """The scale is the clip a."""

    bits: int

    is_step = False  # the kernels' codes reach one below -a
    straight_through = False

    def initial_scale(self, absmax: Tensor, absmean: Tensor) -> Tensor:
        return absmax

    def gradient_factor(self, num_weights: int) -> float:
        return 1.0

    def values(self, weight: Tensor, scale: Tensor) -> Tensor:
        return self.codes(weight, scale).mul_(self.grid(scale).step)

    def backward_(self, weight: Tensor, scale: Tensor, grad: Tensor) -> Tensor | None:
        clipped = self.clipped(weight, scale)
        of_scale = grad * torch.sign(weight) * clipped
        grad.mul_(~clipped)
        return of_scale

    def clipped(self, weight: Tensor, scale: Tensor) -> Tensor:
        return weight.abs() >= scale

    def codes(self, weight: Tensor, scale: Tensor) -> Tensor:
        largest = largest_code(self.bits)
        return torch.round(weight * torch.reciprocal(self.grid(scale).step)).clamp_(-largest, largest)

    def grid(self, scale: Tensor) -> Grid:
        return Grid(scale / largest_code(self.bits), None)
