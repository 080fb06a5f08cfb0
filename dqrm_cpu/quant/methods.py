"""The quantization methods: dqrm, hawq and ptq (`Uniform`), lsq, pact, dorefa; which of them a configuration names.

b is the bit width, w a weight, w^ its quantized value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.config import QuantConfig
from dqrm_cpu.config.schema import UNIFORM_METHODS
from dqrm_cpu.quant.formula import SMALLEST_SCALE, Array, Formula, FoundScale, Grid, LearnedScale, largest_code

if TYPE_CHECKING:
    from torch import Tensor


def uniform_scale(absmax: Array, bits: int) -> Array:
    """Computes f32[n] = max|W| / (2^(bits - 1) - 1), 1e-8 at least: an all-zero table must not divide by zero."""
    if isinstance(absmax, np.ndarray):
        scale: NDArray[np.float32] = np.maximum(absmax / np.float32(largest_code(bits)), SMALLEST_SCALE)
        return scale
    import torch

    # NumPy: at a small batch a training step would notice what torch takes for a few numbers.
    return torch.from_numpy(uniform_scale(absmax.cpu().numpy(), bits)).to(absmax.device)


@dataclass(frozen=True)
class SymmetricFormula:
    """Values clamp(round(w / scale), -2^(b - 1), 2^(b - 1) - 1) * scale; a subclass adds the gradients."""

    bits: int

    has_fused_lookup = True

    def values(self, weight: Array, scale: Array) -> Array:
        return self.codes(weight, scale) * scale

    def clipped(self, weight: Tensor, scale: Tensor) -> Tensor:
        rounded = (weight * (1 / scale)).round()
        return (rounded < -largest_code(self.bits) - 1) | (rounded > largest_code(self.bits))

    def codes(self, weight: Array, scale: Array) -> Array:
        # By the reciprocal, as the kernels compute it.
        largest = largest_code(self.bits)
        return (weight * (1 / scale)).round().clip(-largest - 1, largest)

    def grid(self, scale: Array) -> Grid[Array]:
        return Grid(scale, None)


@dataclass(frozen=True)
class Uniform(SymmetricFormula):
    """dqrm, hawq, ptq: symmetric, with the scale of max|W| (paper 3.1; HAWQ-V3, arXiv 2011.10680).

        scale = max|W| / (2^(b - 1) - 1) * width

    The gradient passes straight through. With the clip mask, a weight beyond the codes gets none.
    """

    clip_mask: bool = False

    @property
    def straight_through(self) -> bool:
        return not self.clip_mask

    def scale_of(self, absmax: Array) -> Array:
        return uniform_scale(absmax, self.bits)

    def backward_(self, weight: Tensor, scale: Tensor, grad: Tensor) -> Tensor | None:
        if self.clip_mask:
            grad.mul_(~self.clipped(weight, scale))
        return None


@dataclass(frozen=True)
class Lsq(SymmetricFormula):
    """lsq: a learned scale s (Esser et al., Learned Step Size Quantization, arXiv 1902.08153, equations 1 to 4).

    v  = w / s,  Qn = 2^(b - 1),  Qp = 2^(b - 1) - 1
    w^ = round(clamp(v, -Qn, Qp)) * s
    dw^/dw = 1 where -Qn < v < Qp, else 0
    dw^/ds = round(v) - v where -Qn < v < Qp;  -Qn below;  Qp above
    gradient of s: summed over its N weights, times 1 / sqrt(N Qp);  s starts at 2 mean|W| / sqrt(Qp)
    """

    straight_through = False

    def initial_scale(self, absmax: Tensor, absmean: Tensor) -> Tensor:
        return absmean * (2 / math.sqrt(largest_code(self.bits)))

    def gradient_factor(self, num_weights: int) -> float:
        return 1 / math.sqrt(num_weights * largest_code(self.bits))

    def backward_(self, weight: Tensor, scale: Tensor, grad: Tensor) -> Tensor | None:
        low, high = -largest_code(self.bits) - 1, largest_code(self.bits)
        v = weight * (1 / scale)
        inside = (v > low) & (v < high)
        slope = (v.round() - v).where(inside, v.clamp(low, high))
        of_scale = grad * slope
        grad.mul_(inside)
        return of_scale


@dataclass(frozen=True)
class Pact:
    """pact: a learned clip (Choi et al., PACT, arXiv 1805.06085, equations 1 to 3), here of weights, on both sides.

        scale of the codes = a / (2^(b - 1) - 1)
        w^ = round(clamp(w, -a, a) / scale of the codes) * scale of the codes
        dw^/dw = 1 where |w| < a, else 0
        dw^/da = sign(w) where |w| >= a, else 0

    The formula's scale is the clip a, which PACT pulls to 0 with the same L2 factor as the weights: train.weight_decay.
    It starts at max|W|, where nothing is clipped yet. (The paper's own PACT has no learned clip: what its code runs
    under that name is `DoReFa`.)
    """

    bits: int

    has_fused_lookup = False  # the kernels' codes reach one below -a
    straight_through = False

    def initial_scale(self, absmax: Tensor, absmean: Tensor) -> Tensor:
        return absmax

    def gradient_factor(self, num_weights: int) -> float:
        return 1.0

    def values(self, weight: Array, scale: Array) -> Array:
        return self.codes(weight, scale) * self.grid(scale).scale

    def backward_(self, weight: Tensor, scale: Tensor, grad: Tensor) -> Tensor | None:
        clipped = self.clipped(weight, scale)
        of_scale = grad * weight.sign() * clipped
        grad.mul_(~clipped)
        return of_scale

    def clipped(self, weight: Tensor, scale: Tensor) -> Tensor:
        return weight.abs() >= scale

    def codes(self, weight: Array, scale: Array) -> Array:
        largest = largest_code(self.bits)
        return (weight * (1 / self.grid(scale).scale)).round().clip(-largest, largest)

    def grid(self, scale: Array) -> Grid[Array]:
        largest: Any = largest_code(self.bits)
        return Grid(scale / largest, None)


@dataclass(frozen=True)
class DoReFa:
    """dorefa: tanh, then uniform levels in [-1, 1] (Zhou et al., DoReFa-Net, arXiv 1606.06160, section 2.3).

        n  = 2^b - 1
        w^ = 2 round(n (tanh(w) / (2 max|tanh(W)|) + 1/2)) / n - 1
        dw^/dw = (1 - tanh(w)^2) / max|tanh(W)|: straight through the rounding, the maximum taken for a constant

    The formula's scale is max|tanh(W)| = tanh(max|W|). 0 is no level, and the levels reach from -1 to 1 however small
    the weights are.
    """

    bits: int

    has_fused_lookup = False
    straight_through = False

    @property
    def _largest_level(self) -> int:
        return int(2**self.bits - 1)

    def scale_of(self, absmax: Array) -> Array:
        return _tanh(absmax).clip(1e-8)

    def values(self, weight: Array, scale: Array) -> Array:
        return self._levels(weight, scale) * (2 / self._largest_level) - 1

    def backward_(self, weight: Tensor, scale: Tensor, grad: Tensor) -> Tensor | None:
        grad.mul_((1 - weight.tanh().square()) / scale)
        return None

    def clipped(self, weight: Tensor, scale: Tensor) -> Tensor:
        return weight.tanh().abs() > scale

    def codes(self, weight: Array, scale: Array) -> Array:
        codes: Array = self._levels(weight, scale) - 2 ** (self.bits - 1)
        return codes

    def grid(self, scale: Array) -> Grid[Array]:
        zeros, largest = scale * 0, self._largest_level
        return Grid(zeros + 2 / largest, zeros + 1 / largest)

    def _levels(self, weight: Array, scale: Array) -> Array:
        """Integers 0 to n, also where the maximum is out of date."""
        levels = ((_tanh(weight) / (2 * scale) + 0.5) * self._largest_level).round()
        return levels.clip(0, self._largest_level)


def _tanh(values: Array) -> Array:
    if isinstance(values, np.ndarray):
        # By torch too: NumPy's differs in the last bit, and a value half-way between codes would get another one.
        import torch

        found: NDArray[np.float32] = torch.from_numpy(values).tanh().numpy()
        return found
    return values.tanh()


def found_formula(quant: QuantConfig, bits: int) -> FoundScale | None:
    """Returns the formula of a method whose scales follow from max|W|; None: FP32, or a method that learns them."""
    if quant.method in UNIFORM_METHODS:
        return Uniform(bits, quant.clip_mask)
    return DoReFa(bits) if quant.method == "dorefa" else None


def learned_formula(quant: QuantConfig, bits: int) -> LearnedScale | None:
    """Returns the formula of a method that learns its scales; None: FP32, or a method whose scales are found."""
    match quant.method:
        case "lsq":
            return Lsq(bits)
        case "pact":
            return Pact(bits)
    return None


def select_formula(quant: QuantConfig, bits: int) -> Formula | None:
    """Returns the formula of the configuration's method; None: FP32."""
    return found_formula(quant, bits) or learned_formula(quant, bits)
