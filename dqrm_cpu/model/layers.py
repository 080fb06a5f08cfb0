"""The dense layers of a model: shapes, views of their parameters in one flat buffer, first weights."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from dqrm_cpu.config import Config
from dqrm_cpu.config.schema import ModelConfig

T = TypeVar("T")


@dataclass(frozen=True)
class LayerShape:
    """One fully connected layer."""

    inputs: int
    outputs: int
    relu: bool
    has_bias: bool = True

    @property
    def num_parameters(self) -> int:
        return self.outputs * (self.inputs + self.has_bias)


def layer_shapes(inputs: int, outputs: Sequence[int], last_relu: bool) -> tuple[LayerShape, ...]:
    """Returns the layers of an MLP whose last layer is rectified only where `last_relu` says so."""
    widths = (inputs, *outputs)
    last = len(outputs) - 1
    return tuple(LayerShape(widths[i], widths[i + 1], last_relu or i < last) for i in range(len(outputs)))


def cross_shapes(width: int, num_layers: int, rank: int) -> tuple[LayerShape, ...]:
    """Returns a cross network's matrices: one per layer, or one down to the rank and one up again, with the bias."""
    if rank == 0:
        return (LayerShape(width, width, relu=False),) * num_layers
    down = LayerShape(width, rank, relu=False, has_bias=False)
    return (down, LayerShape(rank, width, relu=False)) * num_layers


@dataclass(frozen=True)
class MlpShapes:
    """The layers of both MLPs of a model, and what few models have: projections of tables, and a cross network."""

    bottom: tuple[LayerShape, ...]
    top: tuple[LayerShape, ...]
    cross: tuple[LayerShape, ...] = ()
    projections: tuple[LayerShape, ...] = ()
    projected: tuple[int, ...] = ()  # the numbers of their tables

    @property
    def layers(self) -> tuple[LayerShape, ...]:
        """All layers, bottom to top: in this order they lie in a flat buffer and have their scales."""
        return (*self.bottom, *self.projections, *self.cross, *self.top)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all layers in files: bottom.0, project.C3, cross.0 or cross.0.down and .up, top.0, ..."""
        low_rank = any(not shape.has_bias for shape in self.cross)
        names = [
            f"cross.{i // 2}.{('down', 'up')[i % 2]}" if low_rank else f"cross.{i}" for i in range(len(self.cross))
        ]
        bottom, top = ([f"{mlp}.{i}" for i in range(len(getattr(self, mlp)))] for mlp in ("bottom", "top"))
        return (*bottom, *(f"project.C{number + 1}" for number in self.projected), *names, *top)

    @property
    def num_parameters(self) -> int:
        return sum(shape.num_parameters for shape in self.layers)

    def by_part(self, of_layers: Sequence[T]) -> tuple[Sequence[T], Sequence[T], Sequence[T], Sequence[T]]:
        """Splits what has one entry per layer, or none at all: bottom MLP, projections, cross network, top MLP."""
        first = len(self.bottom)
        second = first + len(self.projections)
        third = second + len(self.cross)
        return of_layers[:first], of_layers[first:second], of_layers[second:third], of_layers[third:]


def mlp_shapes(config: Config) -> MlpShapes:
    """Returns the layers that the configuration's widths come to once the interaction's width is known."""
    model = config.model
    width, dim = interaction_width(model), model.embedding_dim
    projected = {number: its for number, its in enumerate(model.dims) if its != dim}
    return MlpShapes(
        layer_shapes(model.num_dense, model.bottom_mlp, last_relu=True),
        layer_shapes(width, model.top_mlp, last_relu=False),
        cross_shapes(width, model.cross_layers, model.cross_rank) if model.interaction == "cross" else (),
        tuple(LayerShape(its, dim, relu=False, has_bias=False) for its in projected.values()),
        tuple(projected),
    )


def interaction_width(model: ModelConfig) -> int:
    """Returns how many values of an example the top MLP reads."""
    num_features = 1 + len(model.table_rows)
    if model.interaction == "dot":
        return model.embedding_dim + num_features * (num_features - 1) // 2
    return num_features * model.embedding_dim


@dataclass(frozen=True)
class LayerParameters:
    """The parameters of one layer, or their gradients: views of a flat buffer."""

    weight: Tensor  # f32[outputs, inputs]
    bias: Tensor  # f32[outputs]; empty where the layer has none


def split_parameters(flat: Tensor, shapes: Sequence[LayerShape]) -> tuple[LayerParameters, ...]:
    """Returns views of each layer's weight and bias, laid out one after the other in `flat`."""
    return tuple(_views(flat, shapes))


def _views(flat: Tensor, shapes: Sequence[LayerShape]) -> Iterator[LayerParameters]:
    at = 0
    for shape in shapes:
        weights = shape.outputs * shape.inputs
        weight = flat[at : at + weights].view(shape.outputs, shape.inputs)
        bias = flat[at + weights : at + shape.num_parameters]
        yield LayerParameters(weight, bias)
        at += shape.num_parameters


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
