"""What the quantization methods have in common: values of weights under a scale, gradients of both, codes to store.

Values, codes and scales are computed of torch's tensors, or to the same bits of NumPy's arrays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Array = TypeVar("Array", "Tensor", NDArray[np.float32])
"""A tensor, or an array of NumPy."""

SMALLEST_SCALE = np.float32(1e-8)


class Grid(NamedTuple, Generic[Array]):
    """The meaning of codes: code * scale + offset; f32, one of each per scale of the formula."""

    scale: Array
    offset: Array | None  # None: 0, so that code 0 is exactly 0


class Formula(Protocol):
    """One method at one bit width, for tables and for matrices of MLPs.

    weight f32[N, D] and scale f32[N, 1] or [1, 1] go together; what the scale means is the method's own affair.
    """

    @property
    def bits(self) -> int: ...

    @property
    def has_fused_lookup(self) -> bool:
        """Whether values are clamp(round(weight / scale)) * scale, so that the kernels' fused lookup computes them."""

    @property
    def straight_through(self) -> bool:
        """Whether the gradient of a weight is that of its quantized value, untouched."""

    def values(self, weight: Array, scale: Array) -> Array:
        """Returns the quantized weights f32[N, D]."""

    def backward_(self, weight: Tensor, scale: Tensor, grad: Tensor) -> Tensor | None:
        """Turns grad f32[N, D], the gradient of the values, into the weights' own in place.

        Returns the gradient of the scale by element, f32[N, D], where the scale is learned.
        """

    def clipped(self, weight: Tensor, scale: Tensor) -> Tensor:
        """Returns bool[N, D]: which weights the quantizer saturates."""

    def codes(self, weight: Array, scale: Array) -> Array:
        """Returns the integers of the values, from -2^(bits - 1) on, as f32[N, D]."""

    def grid(self, scale: Array) -> Grid[Array]:
        """Returns what the codes mean."""


class FoundScale(Formula, Protocol):
    """A formula whose scale follows from max|W|; with a fused lookup, it is the scale that the kernels find."""

    def scale_of(self, absmax: Array) -> Array:
        """Returns the scale f32[n] that follows from max|W| f32[n], one for each table or matrix row."""


class LearnedScale(Formula, Protocol):
    """A formula whose scale is a parameter."""

    def initial_scale(self, absmax: Tensor, absmean: Tensor) -> Tensor:
        """Returns where training starts, from max|W| and mean|W| of what the scale is for; all f32[n]."""

    def gradient_factor(self, num_weights: int) -> float:
        """Returns what the summed gradient of a scale is multiplied by when that many weights share it."""


def largest_code(bits: int) -> int:
    """Returns 2^(bits - 1) - 1."""
    return int(2 ** (bits - 1) - 1)
