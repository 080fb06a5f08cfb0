"""Layers whose products in training are of whole numbers: forward, input gradient and weight gradient.

With codes q and scales s of a row of the batch (b), of a row of the weight (o), of a column of the gradient:

    y[b, o]  = (sum_i qx[b, i] qw[o, i]) sx[b] sw[o] + bias[o]       qx of 8 bits, to the nearest
    dx[b, i] = (sum_o qg[b, o] qw[o, i]) sg[b]                       qg = codes of grad[b, o] sw[o], by chance
    dW[o, i] = (sum_b qh[b, o] qx[b, i]) sh[o]                       qh = codes of grad[b, o] sx[b], by chance

Sums over codes are exact. Inputs in two blocks have two scales sx in each row, and the products are summed, or taken,
block by block.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class IntegerShape:
    """One layer."""

    inputs: int
    outputs: int
    relu: bool
    first_inputs: int  # so many inputs have a scale of their own in each row; all: there is one
    is_unsigned: bool  # no input is negative


class LayerTensors(Protocol):
    """The parameters of a layer, or their gradients."""

    @property
    def weight(self) -> Tensor:
        """f32[outputs, inputs]."""

    @property
    def bias(self) -> Tensor:
        """f32[outputs]."""


class IntegerLayers(Protocol):
    """Layers one after the other, which keep what their backward needs until the next forward.

    What they return is valid until the next call of the same method.
    """

    def follow(self, layers: Sequence[LayerTensors], largest_code: int) -> None:
        """Takes the codes of the weights, each row of which has a scale of its own, and the biases.

        `largest_code` is 127, or less where each row holds multiples of its largest number over that already: then
        codes are exact.
        """

    def forward(self, x: Tensor) -> Tensor:
        """Returns f32[B, outputs] of x f32[B, inputs], rectified where the shapes say so."""

    def backward(self, grad: Tensor, key: int, gradients: Sequence[LayerTensors], wants_input: bool) -> Tensor | None:
        """Writes the gradients of all parameters; returns that of the input f32[B, inputs] where wanted.

        grad f32[B, outputs] is that of the last output. All chances follow from the key (64 bits), the number of the
        layer, the row and the column.
        """


def integer_layers(shapes: Sequence[IntegerShape]) -> IntegerLayers:
    """Returns the layers of one MLP as compiled kernels, for a CPU."""
    # Only here: most runs do without.
    from .numba.integer_mlp import NumbaIntegerLayers

    return NumbaIntegerLayers(shapes)
