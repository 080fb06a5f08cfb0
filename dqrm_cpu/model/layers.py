"""The layers of an MLP: shapes, views of their parameters in one flat buffer, first weights."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LayerShape:
    """One fully connected layer."""

    inputs: int
    outputs: int
    relu: bool

    @property
    def num_parameters(self) -> int:
        return self.outputs * (self.inputs + 1)


def layer_shapes(inputs: int, outputs: Sequence[int], last_relu: bool) -> tuple[LayerShape, ...]:
    """The layers of an MLP whose last layer is rectified only where `last_relu` says so."""
    widths = (inputs, *outputs)
    last = len(outputs) - 1
    return tuple(LayerShape(widths[i], widths[i + 1], last_relu or i < last) for i in range(len(outputs)))


@dataclass(frozen=True)
class LayerParameters:
    """Views of one layer in a flat buffer."""

    weight: Tensor  # f32[outputs, inputs]
    bias: Tensor  # f32[outputs]


def split_parameters(flat: Tensor, shapes: Sequence[LayerShape]) -> tuple[LayerParameters, ...]:
    """Views of each layer's weight and bias, laid out one after the other in `flat`."""
    return tuple(_views(flat, shapes))


def _views(flat: Tensor, shapes: Sequence[LayerShape]) -> Iterator[LayerParameters]:
    at = 0
    for shape in shapes:
        weights = shape.outputs * shape.inputs
        weight = flat[at : at + weights].view(shape.outputs, shape.inputs)
        bias = flat[at + weights : at + shape.num_parameters]
        yield LayerParameters(weight, bias)
        at += shape.num_parameters


def initialize_(shapes: Sequence[LayerShape], layers: Sequence[LayerParameters], generator: torch.Generator) -> None:
    """DLRM's initialization: weights N(0, 2 / (in + out)), biases N(0, 1 / out), variances given."""
    for shape, layer in zip(shapes, layers, strict=True):
        weight = torch.randn(shape.outputs, shape.inputs, generator=generator)
        bias = torch.randn(shape.outputs, generator=generator)
        layer.weight.copy_(weight * (2.0 / (shape.inputs + shape.outputs)) ** 0.5)
        layer.bias.copy_(bias * (1.0 / shape.outputs) ** 0.5)
