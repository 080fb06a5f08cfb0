"""What a configuration makes of a model: the shapes and names of its layers, names of tables and where they are stored.

Without torch, which takes seconds and 200 MB: files are written and read that know nothing of training.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.config import Config, QuantConfig
from dqrm_cpu.config.schema import ModelConfig
from dqrm_cpu.kernels.row_forms import UNQUANTIZED
from dqrm_cpu.quant.methods import learned_formula

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
Flat = TypeVar("Flat", "Tensor", NDArray[np.float32])


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


class ScaleCounts(NamedTuple):
    """The numbers of scales that a model learns."""

    tables: int
    matrices: tuple[int, ...]  # of each layer, bottom to top

    @property
    def total(self) -> int:
        return self.tables + sum(self.matrices)


def scale_counts(quant: QuantConfig, num_tables: int, layers: Sequence[LayerShape]) -> ScaleCounts:
    """Counts the learned scales; none at all unless the method learns them."""
    if learned_formula(quant, quant.embedding_bits) is None:
        return ScaleCounts(0, ())
    if quant.mlp_bits == UNQUANTIZED:
        return ScaleCounts(num_tables, ())
    by_matrix = quant.mlp_granularity == "matrix"
    return ScaleCounts(num_tables, tuple(1 if by_matrix else layer.outputs for layer in layers))


def split_flat(flat: Flat, shapes: Sequence[LayerShape]) -> Iterator[tuple[Flat, Flat]]:
    """Yields views of each layer's weight [outputs, inputs] and bias, which lie one after the other in `flat`."""
    at = 0
    for shape in shapes:
        weights = shape.outputs * shape.inputs
        yield (
            flat[at : at + weights].reshape(shape.outputs, shape.inputs),
            flat[at + weights : at + shape.num_parameters],
        )
        at += shape.num_parameters


def table_names(num_tables: int) -> tuple[str, ...]:
    """Returns the names used in messages and files: C1, C2, ... as Criteo's columns."""
    return tuple(f"C{t + 1}" for t in range(num_tables))


def table_places(model: ModelConfig) -> list[tuple[str, int]]:
    """Returns the tensor of a checkpoint that holds each table, and the table's first row in it."""
    dims, taken = model.dims, Counter[int]()
    places = []
    for rows, dim in zip(model.table_rows, dims, strict=True):
        places.append(("tables" if len(set(dims)) == 1 else f"tables.{dim}", taken[dim]))
        taken[dim] += rows
    return places
