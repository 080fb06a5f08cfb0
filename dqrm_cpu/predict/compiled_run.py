"""A trained run scored by the compiled forward of exported files: in one call, to their bits, from its FP32 tables."""

import numpy as np
from torch import Tensor

from dqrm_cpu.config import Config
from dqrm_cpu.kernels.master_rows import FP32
from dqrm_cpu.kernels.packed_arrays import LayerArrays, NetworkArrays, TableArrays
from dqrm_cpu.kernels.packed_scoring import CompiledNetwork
from dqrm_cpu.kernels.types import UNQUANTIZED
from dqrm_cpu.model.dlrm import Dlrm
from dqrm_cpu.model.layers import LayerParameters
from dqrm_cpu.quant.formula import Formula

_CODE_BITS = 16
"""The most bits of codes: formulas of 32 leave weights as they are."""


def compile_run(config: Config, model: Dlrm, scale: Tensor, quantized: bool, threads: int) -> CompiledNetwork | None:
    """Returns the compiled forward of a model; None where its settings compute something else.

    `scale`: that of the tables, f32[T]; not `quantized`: weights are taken as they are. Tables are not copied.
    """
    formula = model.table_formula if quantized else None
    if (
        model.kernels.name != "numba"
        or model.groups.dtype != FP32
        or config.train.precision == "bf16"  # int8 is scored in FP32
        or config.quant.activation_bits != UNQUANTIZED
        or not (formula is None or formula.has_fused_lookup)
    ):
        return None
    rounded_bits = 0 if formula is None or formula.bits == UNQUANTIZED else formula.bits
    layers = [_layer(model, *of_layer, quantized) for of_layer in _layers(model)]
    bottom, projections, cross, top = model.shapes.by_part(layers)
    by_table = dict(zip(model.shapes.projected, projections, strict=True))
    return CompiledNetwork(
        NetworkArrays(
            tables=[_table(t, weight, scale[t : t + 1], rounded_bits) for t, weight in enumerate(model.groups.weights)],
            projections=[by_table.get(t) for t in range(model.groups.num_tables)],
            bottom=bottom,
            cross=cross,
            top=top,
            dim=config.model.embedding_dim,
            is_dot=config.model.interaction == "dot",
            is_mean=config.model.pooling == "mean",
        ),
        threads,
    )


def _table(number: int, weight: Tensor, scale: Tensor, rounded_bits: int) -> TableArrays:
    rows, dim = weight.shape
    return TableArrays(
        codes=weight.numpy().view(np.uint8),
        num_rows=rows,
        dim=dim,
        bits=UNQUANTIZED,
        scale=scale.float().numpy(),
        offset=None,
        first_slot=number,
        num_slots=1,
        is_bag=False,
        rounded_bits=rounded_bits,
    )


def _layers(model: Dlrm) -> list[tuple[LayerParameters, tuple[Formula, Tensor] | None, bool, bool]]:
    """Returns of each layer its parameters, what quantizes it, whether it is rectified, and whether it ends a cross."""
    shapes = model.shapes
    first = len(shapes.bottom) + len(shapes.projections)
    crosses = range(first, first + len(shapes.cross))
    return [
        (layer, quantized, shape.relu, number in crosses and shape.has_bias)
        for number, (shape, (_, layer, quantized)) in enumerate(zip(shapes.layers, model.mlp_layers(), strict=True))
    ]


def _layer(
    model: Dlrm,
    layer: LayerParameters,
    quantizer: tuple[Formula, Tensor] | None,
    rectify: bool,
    ends_cross: bool,
    quantized: bool,
) -> LayerArrays:
    values, bits, scale, bias = layer.weight, UNQUANTIZED, None, layer.bias
    if quantized and quantizer is not None:
        formula, found = quantizer
        grid = formula.grid(found.view(-1))
        if grid.offset is None and formula.bits <= _CODE_BITS:
            values, bits, scale = formula.codes(layer.weight, found), formula.bits, grid.scale.numpy()
        else:
            values = formula.values(layer.weight, found)
    if quantized and model.bias_formula is not None and bias.numel():
        bias = model.bias_formula.values(bias, model.bias_formula.scale_of(bias.abs().amax().view(1)))
    return LayerArrays(
        values=values.numpy(),
        bits=bits,
        scale=scale,
        bias=bias.numpy() if bias.numel() else None,
        rectify=rectify,
        ends_cross=ends_cross,
    )
