"""lsq: a learned step (Esser et al., Learned Step Size Quantization, arXiv 1902.08153, equations 1 to 4).

v  = w / s,  Qn = 2^(b - 1),  Qp = 2^(b - 1) - 1
w^ = round(clamp(v, -Qn, Qp)) * s
dw^/dw = 1 where -Qn < v < Qp, else 0
dw^/ds = round(v) - v where -Qn < v < Qp;  -Qn below;  Qp above
gradient of s: summed over its N weights, times 1 / sqrt(N Qp);  s starts at 2 mean|W| / sqrt(Qp)
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dqrm_cpu.quant.formula import largest_code
from dqrm_cpu.quant.uniform import StepFormula


@dataclass(frozen=True)
class Lsq(StepFormula):
    """The scale is the step s."""

    straight_through = False

    def initial_scale(self, absmax: Tensor, absmean: Tensor) -> Tensor:
        return absmean * (2 / math.sqrt(largest_code(self.bits)))

    def gradient_factor(self, num_weights: int) -> float:
        return 1 / math.sqrt(num_weights * largest_code(self.bits))

    def backward_(self, weight: Tensor, scale: Tensor, grad: Tensor) -> Tensor | None:
        low, high = -largest_code(self.bits) - 1, largest_code(self.bits)
        v = weight * torch.reciprocal(scale)
        inside = (v > low) & (v < high)
        slope = torch.where(inside, torch.round(v) - v, v.clamp(low, high))
        of_scale = grad * slope
        grad.mul_(inside)
        return of_scale
