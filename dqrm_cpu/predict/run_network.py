"""A trained run scored in NumPy for a few rows: by the weights of its checkpoint, quantized, and no byte of a file."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.export.write import PackedLayers, PackedWeights
from dqrm_cpu.serving.description import BOTTOM, CROSS, FLOAT_BITS, PROJECT, TOP, Description, LayerDescription
from dqrm_cpu.serving.layers import FloatLayer, InputGrid
from dqrm_cpu.serving.network import PlainNetwork

Floats = NDArray[np.float32]
Rows = Sequence[NDArray[np.int64]]
"""Rows of each table, rising."""


def run_network(model: Description, weights: PackedWeights, rows: Rows, values: Sequence[Floats]) -> PlainNetwork:
    """Returns the network of a run that has these rows of its tables alone, whose weights are f32[n, D] each."""
    layers = {
        part: [_layer(model, weights.layers, about, i > 0 and part in (BOTTOM, TOP)) for i, about in enumerate(of_part)]
        for part, of_part in ((part, model.part(part)) for part in (BOTTOM, PROJECT, CROSS, TOP))
    }
    tables = _SampledTables(model, weights, rows, values, layers[PROJECT])
    return PlainNetwork(model, tables.pooled, layers[BOTTOM], layers[CROSS], layers[TOP])


class _SampledTables:
    """Rows of all tables, quantized."""

    def __init__(
        self,
        model: Description,
        weights: PackedWeights,
        rows: Rows,
        values: Sequence[Floats],
        projections: Sequence[FloatLayer],
    ) -> None:
        assert weights.formula is not None
        self._model, self._rows = model, rows
        self._slots = np.array(model.slots)
        self._values = [
            weights.formula.values(of_table, scale.reshape(1, 1))
            for of_table, scale in zip(values, weights.scale, strict=True)
        ]
        self._projections = {int(layer.description.name.removeprefix("project.C")) - 1: layer for layer in projections}

    def pooled(self, ids: NDArray[np.int64]) -> Floats:
        """Returns f32[n, T, D] of ids [n, S] of these rows, -1 where a bag has fewer than its limit."""
        features = np.empty((len(ids), len(self._rows), self._model.dim), np.float32)
        for t, (rows, values) in enumerate(zip(self._rows, self._values, strict=True)):
            of_table = ids[:, self._slots == t]
            there = of_table >= 0
            found = values[np.where(there, np.searchsorted(rows, of_table), 0)] * there[..., None]
            summed = found.sum(1, dtype=np.float32)
            if self._model.mean_pooling:
                summed /= np.maximum(there.sum(1, dtype=np.float32), 1)[:, None]
            project = self._projections.get(t)
            features[:, t] = summed if project is None else project(summed)
        return features


def _layer(model: Description, layers: PackedLayers, about: LayerDescription, unsigned: bool) -> FloatLayer:
    number = [layer.name for layer in layers.layers].index(about.name)
    weight, quantizer = layers.layers[number].weight, layers.layers[number].quantizer
    if quantizer is not None:
        formula, scale = quantizer
        weight = formula.values(weight, scale)
    grid = None
    if model.activation_bits != FLOAT_BITS:
        grid = InputGrid.of(model.activation_bits, layers.input_max[number], unsigned)
    return FloatLayer(about, weight, layers.read_bias(number), grid)
