"""The parameters of dense layers: views of one flat buffer, and the weights that they begin with."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dqrm_cpu.model.shapes import LayerShape, MlpShapes, split_flat


@dataclass(frozen=True)
class LayerParameters:
    """The parameters of one layer, or their gradients: views of a flat buffer."""

    weight: Tensor  # f32[outputs, inputs]
    bias: Tensor  # f32[outputs]; empty where the layer has none


def split_parameters(flat: Tensor, shapes: Sequence[LayerShape]) -> tuple[LayerParameters, ...]:
    """Returns views of each layer's weight and bias, laid out one after the other in `flat`."""
    return tuple(LayerParameters(weight, bias) for weight, bias in split_flat(flat, shapes))


def initialize_(shapes: MlpShapes, flat: Tensor, generator: torch.Generator) -> None:
    """Draws weights as DLRM does: weights N(0, 2 / (in + out)), biases N(0, 1 / out), variances given.

    Biases of a cross network start at 0, as DCNv2's do.
    """
    layers = split_parameters(flat, shapes.layers)
    for shape, layer in zip(shapes.layers, layers, strict=True):
        weight = torch.randn(shape.outputs, shape.inputs, generator=generator)
        bias = torch.randn(layer.bias.numel(), generator=generator)
        layer.weight.copy_(weight * (2.0 / (shape.inputs + shape.outputs)) ** 0.5)
        layer.bias.copy_(bias * (1.0 / shape.outputs) ** 0.5)
    _, _, cross, _ = shapes.by_part(layers)
    for layer in cross:
        layer.bias.zero_()
