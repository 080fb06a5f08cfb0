"""dorefa: tanh, then uniform levels in [-1, 1] (Zhou et al., DoReFa-Net, arXiv 1606.06160, section 2.3).

    n  = 2^b - 1
    w^ = 2 round(n (tanh(w) / (2 max|tanh(W)|) + 1/2)) / n - 1
    dw^/dw = (1 - tanh(w)^2) / max|tanh(W)|: straight through the rounding, the maximum taken for a constant

0 is no level, and the levels reach from -1 to 1 however small the weights are. max|tanh(W)| = tanh(max|W|).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dqrm_cpu.quant.formula import Grid

_SMALLEST_MAXIMUM = 1e-8


@dataclass(frozen=True)
class DoReFa:
    """The scale is max|tanh(W)|."""

    bits: int

    is_step = False
    straight_through = False

    @property
    def _steps(self) -> int:
        return int(2**self.bits - 1)

    def scale_of(self, absmax: Tensor) -> Tensor:
        return torch.tanh(absmax).clamp_(min=_SMALLEST_MAXIMUM)

    def values(self, weight: Tensor, scale: Tensor) -> Tensor:
        return self._levels(weight, scale).mul_(2 / self._steps).sub_(1)

    def backward_(self, weight: Tensor, scale: Tensor, grad: Tensor) -> Tensor | None:
        grad.mul_((1 - torch.tanh(weight).square()) / scale)
        return None

    def clipped(self, weight: Tensor, scale: Tensor) -> Tensor:
        return torch.tanh(weight).abs() > scale

    def codes(self, weight: Tensor, scale: Tensor) -> Tensor:
        return self._levels(weight, scale).sub_(2 ** (self.bits - 1))

    def grid(self, scale: Tensor) -> Grid:
        return Grid(torch.full_like(scale, 2 / self._steps), torch.full_like(scale, 1 / self._steps))

    def _levels(self, weight: Tensor, scale: Tensor) -> Tensor:
        """Integers 0 to n, also where the maximum is out of date."""
        return torch.round((torch.tanh(weight) / (2 * scale) + 0.5) * self._steps).clamp_(0, self._steps)
