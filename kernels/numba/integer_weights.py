"""A layer's weight as codes in panels, for the products of training in whole numbers: forward, and input gradient.

A row of the weight, the inputs of one output, has one scale. Its codes stand in memory twice: four inputs of an output
side by side for the forward, four outputs of an input for the gradient of what the layer read.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types

from ..jit.compile import kernel, serial
from ..jit.memory import Codegen, element_pointer, float_at, int_at, intrinsic, set_float, set_int
from ..jit.simd import LANES, WORD_VECTOR, load_part, multiply, round_clamp, same_words, splat
from ..jit.simd_bytes import interleave_bytes
from ..jit.simd_integers import as_float, byte_products, store_bytes
from ..jit.threads import on_all_threads
from .absmax_tracker import largest_magnitude
from .integer_panels import FOUR, GROUP_BYTES, SIGNED_ZERO
from .integer_records import CodedWeight, weight_at
from .panels import PANEL

_SMALLEST_SCALE = np.float32(1e-8)

_I64 = ir.IntType(64)


@intrinsic
def sum_of_zeros(typing: Any, weight: Any, groups: Any, out: Any) -> tuple[Any, Codegen]:
    """Writes int32[PANEL] = what a panel's sums begin with where SIGNED_ZERO was added to the other factor."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        weight, groups, out = args
        zeros = ir.Constant(WORD_VECTOR, [SIGNED_ZERO * 0x01010101] * LANES)
        places = [cgutils.alloca_once_value(builder, same_words(0)) for _ in range(2)]
        with cgutils.for_range(builder, groups) as loop:
            of_group = builder.add(weight, builder.mul(loop.index, _I64(GROUP_BYTES)))
            for k, place in enumerate(places):
                codes = builder.load(element_pointer(builder, of_group, _I64(k * LANES), WORD_VECTOR, 4), align=4)
                builder.store(byte_products(builder, builder.load(place), zeros, codes), place)
        for k, place in enumerate(places):
            target = element_pointer(builder, out, _I64(k * LANES), WORD_VECTOR, 4)
            builder.store(builder.neg(builder.load(place)), target, align=4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), codegen


@serial
def groups_of_four(count: int) -> int:
    """Returns the groups of four of so many."""
    return (count + FOUR - 1) // FOUR


@serial
def panels_of(count: int) -> int:
    """Returns the panels of so many."""
    return (count + PANEL - 1) // PANEL


@kernel
def code_weights(records: int, num_layers: int, limit: np.float32) -> None:
    """Rounds the weights of all layers to codes up to `limit`, and lays them out in panels."""
    rows = panels = 0
    for layer in range(num_layers):
        w = weight_at(records, layer)
        rows += groups_of_four(w.outputs)
        panels += panels_of(w.outputs) + panels_of(w.first_inputs) + panels_of(w.more_inputs)
    on_all_threads(rows, _code_item, (records, limit))
    on_all_threads(panels, _begin_item, (records,))


@serial
def _code_item(records: int, limit: np.float32, item: int) -> None:
    layer = 0
    while item >= groups_of_four(weight_at(records, layer).outputs):
        item -= groups_of_four(weight_at(records, layer).outputs)
        layer += 1
    _code_four_rows(weight_at(records, layer), limit, item)


@serial
def _begin_item(records: int, item: int) -> None:
    layer = 0
    while True:
        w = weight_at(records, layer)
        panels = panels_of(w.outputs) + panels_of(w.first_inputs) + panels_of(w.more_inputs)
        if item < panels:
            _begin_panel(w, item)
            return
        item -= panels
        layer += 1


@serial
def _code_four_rows(w: CodedWeight, limit: np.float32, group: int) -> None:
    inputs = w.first_inputs + w.more_inputs
    groups, more_groups = groups_of_four(w.first_inputs), groups_of_four(w.more_inputs)
    for row in range(FOUR * group, min(w.outputs, FOUR * (group + 1))):
        values, codes = w.values + 4 * row * inputs, w.codes + row * w.stride
        scale = as_float(largest_magnitude(values, 0, inputs)) / limit
        if scale < _SMALLEST_SCALE:  # false for NaN, which stays
            scale = _SMALLEST_SCALE
        set_float(w.scale, row, scale)
        set_float(w.used_bias, row, float_at(w.bias, row))
        inverse = np.float32(1) / scale
        _code_block(values, w.first_inputs, inverse, limit, codes)
        _code_block(values + 4 * w.first_inputs, w.more_inputs, inverse, limit, codes + FOUR * groups)
        panel = w.forward + (row // PANEL) * (groups + more_groups) * GROUP_BYTES + FOUR * (row % PANEL)
        for k in range(groups + more_groups):
            set_int(panel + k * GROUP_BYTES, 0, int_at(codes, k))
    rows = w.codes + FOUR * group * w.stride
    of_outputs = groups_of_four(w.outputs)
    interleave_four(rows, w.stride, w.first_inputs, w.backward, of_outputs, group)
    second = w.backward + panels_of(w.first_inputs) * of_outputs * GROUP_BYTES
    interleave_four(rows + FOUR * groups, w.stride, w.more_inputs, second, of_outputs, group)


@serial
def _code_block(values: int, count: int, inverse: np.float32, limit: np.float32, codes: int) -> None:
    for k in range(0, count, LANES):
        rounded = round_clamp(multiply(load_part(values, k, count - k), splat(inverse)), -limit, limit)
        store_bytes(codes, k, rounded, 0)


@serial
def interleave_four(rows: int, stride: int, count: int, panels: int, groups: int, group: int) -> None:
    """Writes group `group` of the panels of so many columns, of `groups` groups each, from four rows of bytes."""
    for k in range(0, count, LANES):
        target = panels + ((k // PANEL) * groups + group) * GROUP_BYTES + FOUR * (k % PANEL)
        interleave_bytes(rows + k, stride, target)


@serial
def _begin_panel(w: CodedWeight, item: int) -> None:
    """Writes what a panel's sums begin with: of outputs in the forward, then of the inputs of either block."""
    outputs, of_outputs = panels_of(w.outputs), groups_of_four(w.outputs)
    groups, more_groups = groups_of_four(w.first_inputs), groups_of_four(w.more_inputs)
    if item >= outputs:
        at = item - outputs
        weight = w.backward + at * of_outputs * GROUP_BYTES
        sum_of_zeros(weight, of_outputs, w.first_sums_back + 4 * at * PANEL)
        return
    if w.zero == SIGNED_ZERO:
        weight = w.forward + item * (groups + more_groups) * GROUP_BYTES
        sum_of_zeros(weight, groups, w.first_sums + 4 * item * PANEL)
        if more_groups:
            second = weight + groups * GROUP_BYTES
            sum_of_zeros(second, more_groups, w.first_sums + 4 * (outputs + item) * PANEL)
