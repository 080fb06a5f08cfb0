"""What the quantization methods have in common: values of weights under a scale, gradients of both, codes to store."""

from typing import NamedTuple, Protocol

from torch import Tensor


class Grid(NamedTuple):
    """The value of a code is code * step + offset; f32, one of each per scale."""

    step: Tensor
    offset: Tensor | None  # None: 0, so that code 0 is exactly 0


class Formula(Protocol):
    """One method at one bit width, for tables and for matrices of MLPs.

    weight f32[N, D] and scale f32[N, 1] or [1, 1] go together; what the scale means is the method's own affair.
    """

    @property
    def bits(self) -> int: ...

    @property
    def is_step(self) -> bool:
        """Whether values are clamp(round(weight / scale)) * scale, so that the kernels' fused lookup computes them."""

    @property
    def straight_through(self) -> bool:
        """Whether the gradient of a weight is that of its quantized value, untouched."""

    def values(self, weight: Tensor, scale: Tensor) -> Tensor:
        """The quantized weights, f32[N, D]."""

    def backward_(self, weight: Tensor, scale: Tensor, grad: Tensor) -> Tensor | None:
        """Turns grad f32[N, D], that of the values, into that of the weights in place.

        Returns that of the scale by element, f32[N, D], where the scale is learned.
        """

    def clipped(self, weight: Tensor, scale: Tensor) -> Tensor:
        """bool[N, D]: which weights the quantizer saturates."""

    def codes(self, weight: Tensor, scale: Tensor) -> Tensor:
        """The integers of the values, from -2^(bits - 1) on, as f32[N, D]."""

    def grid(self, scale: Tensor) -> Grid:
        """What the codes mean."""


class FoundScale(Formula, Protocol):
    """A formula whose scale follows from max|W|; if it is a step, it is the one that the kernels find."""

    def scale_of(self, absmax: Tensor) -> Tensor:
        """Both f32[n], one for each table or matrix row."""


class LearnedScale(Formula, Protocol):
    """A formula whose scale is a parameter."""

    def initial_scale(self, absmax: Tensor, absmean: Tensor) -> Tensor:
        """Where training starts: from max|W| and mean|W| of what the scale is for; all f32[n]."""

    def gradient_factor(self, num_weights: int) -> float:
        """What the summed gradient of a scale is multiplied by when that many weights share it."""


def largest_code(bits: int) -> int:
    """2^(bits - 1) - 1."""
    return int(2 ** (bits - 1) - 1)
