"""What an exported file says beside its weights: the columns of raw rows, their vocabulary, the layers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu import __version__
from dqrm_cpu.config import Config
from dqrm_cpu.data.prepare.row_layout import CATEGORY_ROLES, DENSE_ROLES, FieldRole, Layout
from dqrm_cpu.data.store.transform import BUCKETS, LOG, Transform
from dqrm_cpu.export.safetensors_writer import Streamed
from dqrm_cpu.model.shapes import mlp_shapes
from dqrm_cpu.serving.description import (
    BOTTOM,
    CROSS,
    PROJECT,
    TOP,
    Calibrating,
    CategoryColumn,
    Description,
    IdRule,
    LayerDescription,
    NumberColumn,
)
from dqrm_cpu.serving.ids import keys_tensors

_KEYS_AT_ONCE = 1 << 20

_KINDS = {
    FieldRole.INTEGER: "integer",
    FieldRole.DECIMAL: "decimal",
    FieldRole.HEX: "hex",
    FieldRole.TEXT: "text",
    FieldRole.BAG: "bag",
}


@dataclass(frozen=True)
class RawFeatures:
    """What raw rows of a data set hold, and which row of its table a category has."""

    layout: Layout
    transforms: Sequence[Transform]
    ids: IdRule
    keys: Sequence[NDArray[Any]] = ()  # of ids 1, 2, ... by table; none of hashed ids
    calibration: Calibrating | None = None
    metrics: Mapping[str, float] | None = None


def describe(config: Config, file_layout: str, features: RawFeatures) -> Description:
    """Returns what the file says of itself."""
    model, quant = config.model, config.quant
    return Description(
        numbers=tuple(_numbers(features)),
        categories=tuple(_categories(features.layout, model.table_rows, model.dims)),
        ids=features.ids,
        dim=model.embedding_dim,
        table_bits=quant.embedding_bits,
        layout=file_layout,
        mean_pooling=model.pooling == "mean",
        interaction=model.interaction,
        layers=tuple(_layers(config)),
        bias_bits=quant.mlp_bias_bits,
        activation_bits=quant.activation_bits,
        calibration=features.calibration,
        metrics=features.metrics,
        written_by=__version__,
    )


def vocabulary_tensors(description: Description, features: RawFeatures) -> Iterator[Streamed]:
    """Yields the keys of each table in rising order, and the row of each."""
    for (keys_name, rows_name), keys in zip(keys_tensors(description).values(), features.keys, strict=False):
        yield Streamed(keys_name, str(keys.dtype), keys.shape, partial(_sorted_keys, keys))
        yield Streamed(rows_name, "int32", keys.shape, partial(_rows_of_keys, keys))


def _sorted_keys(keys: NDArray[Any]) -> Iterator[NDArray[Any]]:
    yield np.sort(keys)


def _rows_of_keys(keys: NDArray[Any]) -> Iterator[NDArray[Any]]:
    order = np.argsort(keys, kind="stable")
    for first in range(0, order.size, _KEYS_AT_ONCE):
        yield (order[first : first + _KEYS_AT_ONCE] + 1).astype(np.int32)


def _numbers(features: RawFeatures) -> Iterator[NumberColumn]:
    """Yields the dense columns of the data set, then those that become buckets, in the order of their tables."""
    layout = features.layout
    fields = {field.name: field for field in layout.fields if field.role in DENSE_ROLES}
    fitted = {transform.name: transform for transform in features.transforms}
    for name in (*layout.schema.features, *layout.buckets):
        transform = fitted.get(name)
        kind, numbers = (LOG, ()) if transform is None else (transform.kind, transform.numbers)
        yield NumberColumn(name, _KINDS[fields[name].role], kind, numbers)


def _categories(layout: Layout, table_rows: Sequence[int], dims: Sequence[int]) -> Iterator[CategoryColumn]:
    fields = {field.name: field for field in layout.fields if field.role in CATEGORY_ROLES}
    for name, rows, dim in zip(layout.schema.categorical, table_rows, dims, strict=True):
        field = fields.get(name)
        if field is None:
            yield CategoryColumn(name, BUCKETS, rows, dim)
        else:
            yield CategoryColumn(name, _KINDS[field.role], rows, dim, field.separator, field.limit)


def _layers(config: Config) -> Iterator[LayerDescription]:
    shapes, bits = mlp_shapes(config), config.quant.mlp_bits
    parts = (BOTTOM, PROJECT, CROSS, TOP)
    names, layers = shapes.by_part(shapes.names), shapes.by_part(shapes.layers)
    for part, of_part, shapes_of_part in zip(parts, names, layers, strict=True):
        for name, shape in zip(of_part, shapes_of_part, strict=True):
            yield LayerDescription(name, part, shape.inputs, shape.outputs, shape.relu, shape.has_bias, bits)
