"""The products of a layer in training as products of whole numbers: forward, input gradient, weight gradient.

A product of whole numbers allows scales only along what is not summed over. So a row of a batch has one scale in what
a layer reads, or one for either of two blocks; a row of the weight has one. What is summed over must have none: the
gradient of outputs is multiplied by the weight's scales before it is rounded, each row by a scale of its own, for the
gradient of inputs; and by the scales of what the layer read, each column by a scale of its own, for that of the weight.
Gradients are rounded by chance. Sums are exact, whatever the processor and its threads.
"""

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types

from ..jit.compile import inlined, kernel, serial
from ..jit.hashing import splitmix64
from ..jit.memory import Codegen, element_pointer, float_at, intrinsic, set_float
from ..jit.simd import (
    LANES,
    WORD_VECTOR,
    add,
    load,
    load_part,
    multiply,
    round_clamp,
    splat,
    store,
    store_part,
    transpose,
    where_positive,
)
from ..jit.simd_bytes import add_chance, raise_magnitudes, store_four_bytes
from ..jit.simd_integers import (
    as_float,
    larger,
    largest,
    load_words,
    magnitude,
    no_words,
    store_bytes,
    to_floats,
)
from ..jit.threads import on_all_threads
from ..packed_arrays import LEAST_MAGNITUDE
from .integer_panels import (
    FOUR,
    GROUP_BYTES,
    ROWS,
    SIGNED_ZERO,
    IntegerProduct,
    byte_sums,
    load_words_of_panels,
    many_rows,
    round_row,
)
from .integer_records import (
    BlockGradient,
    OutputGradient,
    block_at,
    gradient_at,
    output_at,
    product_at,
    product_back_at,
)
from .integer_weights import groups_of_four, interleave_four, panels_of, sum_of_zeros
from .panels import PANEL
from .random_values import random_words

ROWS_PER_ITEM = 48
"""Rows of a batch that a thread rounds and multiplies together: a multiple of ROWS and FOUR. Biases' sums, too."""

_TILE_ROWS = 8 if LANES == 16 else 4
_GROUPS_AT_ONCE = 96
"""Of panels that are multiplied while the fastest cache holds them."""

_LARGEST, _INFINITE = np.float32(127), np.float32(np.inf)

_I64 = ir.IntType(64)


class Rows(NamedTuple):
    """The rows of a batch, or their gradient, and the layers that they go through."""

    records: int  # `integer_records`
    num_layers: int
    batch: int
    groups: int  # of a panel of the batch: in whole items, by fours
    key: np.uint64  # that all chances follow from


@kernel
def forward_layers(r: Rows, x: int, x_stride: int) -> None:
    """Writes the outputs of all layers, from rows of f32 `x_stride` floats apart, and panels of what they read."""
    on_all_threads((r.batch + ROWS_PER_ITEM - 1) // ROWS_PER_ITEM, _forward_item, (r, x, x_stride))


@serial
def _forward_item(r: Rows, x: int, x_stride: int, item: int) -> None:
    for layer in range(r.num_layers):
        p, out = product_at(r.records, layer), output_at(r.records, layer)
        _forward_rows(r, p, block_at(r.records, layer, 0).panels, x, x_stride, item)
        start = item * ROWS_PER_ITEM
        multiply_item(p, start, min(r.batch, start + ROWS_PER_ITEM), out, p.outputs)
        x, x_stride = out, p.outputs


@serial
def _forward_rows(r: Rows, p: IntegerProduct, panels: int, x: int, x_stride: int, item: int) -> None:
    """Rounds an item's rows to bytes, row by row, and in panels."""
    start = item * ROWS_PER_ITEM
    end = min(r.batch, start + ROWS_PER_ITEM)
    for row in range(start, end):
        round_row(p, x + 4 * row * x_stride, row)
    second = panels + panels_of(p.first_inputs) * r.groups * GROUP_BYTES
    at = FOUR * groups_of_four(p.first_inputs)
    for group in range(start // FOUR, groups_of_four(end)):
        rows = p.codes + FOUR * group * p.codes_stride
        interleave_four(rows, p.codes_stride, p.first_inputs, panels, r.groups, group)
        interleave_four(rows + at, p.codes_stride, p.inputs - p.first_inputs, second, r.groups, group)


@serial
def multiply_item(p: IntegerProduct, start: int, end: int, out: int, out_stride: int) -> None:
    """Writes the rows from start to end of f32 out, and some beyond, from the bytes of `p`."""
    for panel in range(panels_of(p.outputs)):
        for row in range(start, end, ROWS):
            many_rows(p, out, out_stride, row, panel)


@kernel
def backward_layers(r: Rows) -> None:
    """Writes the gradients of all layers' parameters, and of the first layer's input if its record asks for it."""
    items = (r.batch + ROWS_PER_ITEM - 1) // ROWS_PER_ITEM
    panels = units = 0
    for layer in range(r.num_layers):
        of_layer = panels_of(gradient_at(r.records, layer).outputs)
        panels += of_layer
        units += of_layer * _panels_of_inputs(r.records, layer)
    on_all_threads(items, _backward_item, (r,))
    on_all_threads(panels, _complete_columns, (r,))
    on_all_threads(items, _round_item, (r,))
    on_all_threads(units, _multiply_unit, (r,))


@serial
def _panels_of_inputs(records: int, layer: int) -> int:
    return panels_of(block_at(records, layer, 0).inputs) + panels_of(block_at(records, layer, 1).inputs)  # type: ignore[no-any-return]


@serial
def _backward_item(r: Rows, item: int) -> None:
    """Takes an item's rows through all layers, from the last to the first."""
    start = item * ROWS_PER_ITEM
    end = min(r.batch, start + ROWS_PER_ITEM)
    for number in range(r.num_layers):
        layer = r.num_layers - 1 - number
        g, first = gradient_at(r.records, layer), product_back_at(r.records, layer, 0)
        more, key = product_back_at(r.records, layer, 1), splitmix64(r.key, layer)
        _backward_rows(g, first, key, int(more.outputs > 0), start, end)
        if g.grad_x:
            multiply_item(first, start, end, g.grad_x, g.inputs)
            multiply_item(more, start, end, g.grad_x + 4 * first.outputs, g.inputs)


@serial
def _backward_rows(
    g: OutputGradient, first: IntegerProduct, key: np.uint64, has_more: int, start: int, end: int
) -> None:
    """Rectifies an item's rows, sums those of the bias, finds columns' maxima; rounds rows for the input gradient."""
    item, zeros = start // ROWS_PER_ITEM, splat(np.float32(0))
    sums, maxima = g.bias_sums + 4 * item * g.outputs, g.maxima + 8 * item * g.outputs
    for k in range(0, g.outputs, LANES):
        store_part(sums, k, zeros, g.outputs - k)
        store_part(maxima, k, zeros, g.outputs - k)
        store_part(maxima, g.outputs + k, zeros, g.outputs - k)
    for row in range(start, end):
        most = _rectify_row(g, row, sums, maxima, has_more)
        if g.grad_x:
            _round_gradient(g, first, key, row, most)


@serial
def _rectify_row(g: OutputGradient, row: int, sums: int, maxima: int, has_more: int) -> np.float32:
    """Rectifies a row, adds it to sums, raises columns' maxima; returns its largest number times a weight's scale."""
    width, at = g.outputs, row * g.outputs
    s0, s1 = splat(float_at(g.row_scales, 2 * row)), splat(float_at(g.row_scales, 2 * row + 1))
    magnitudes = no_words()
    for k in range(0, width, LANES):
        count = width - k
        value = load_part(g.grad, at + k, count)
        if g.activation:
            value = where_positive(load_part(g.activation, at + k, count), value)
            store_part(g.grad, at + k, value, count)
        store_part(sums, k, add(load_part(sums, k, count), value), count)
        raise_magnitudes(maxima, k, multiply(value, s0), count)
        if has_more:
            raise_magnitudes(maxima, width + k, multiply(value, s1), count)
        magnitudes = larger(magnitudes, magnitude(multiply(value, load_part(g.weight_scale, k, count))))
    return as_float(largest(magnitudes))  # type: ignore[no-any-return]


@serial
def _round_gradient(g: OutputGradient, p: IntegerProduct, key: np.uint64, row: int, most: np.float32) -> None:
    """Writes the bytes of a row, times the weight's scales, and the row's scale."""
    factor, share = _scale_of(most)
    set_float(p.row_scales, 2 * row, share)
    word = splitmix64(key, row)
    low, high = np.uint32(word & np.uint64(0xFFFFFFFF)), np.uint32(word >> np.uint64(32))
    codes = p.codes + row * p.codes_stride
    for k in range(0, g.outputs, LANES):
        count = g.outputs - k
        value = multiply(load_part(g.grad, row * g.outputs + k, count), load_part(g.weight_scale, k, count))
        value = add_chance(multiply(value, splat(factor)), random_words(low, high, k), 1)
        store_bytes(codes, k, round_clamp(value, -_LARGEST, _LARGEST), SIGNED_ZERO)


@serial
def _scale_of(most: np.float32) -> tuple[np.float32, np.float32]:
    """Returns by what to multiply numbers, of which none is larger, to have codes, and by what their sums."""
    factor = _LARGEST / most if most >= LEAST_MAGNITUDE and most < _INFINITE else np.float32(0)
    return factor, most / _LARGEST


@serial
def _complete_columns(r: Rows, item: int) -> None:
    """Sums the gradient of a panel's biases, and finds by what to multiply its columns."""
    layer = 0
    while item >= panels_of(gradient_at(r.records, layer).outputs):
        item -= panels_of(gradient_at(r.records, layer).outputs)
        layer += 1
    g, more = gradient_at(r.records, layer), block_at(r.records, layer, 1)
    items = (r.batch + ROWS_PER_ITEM - 1) // ROWS_PER_ITEM
    for column in range(item * PANEL, min(g.outputs, (item + 1) * PANEL), LANES):
        summed = splat(np.float32(0))
        for number in range(items):
            summed = add(summed, load_part(g.bias_sums, number * g.outputs + column, g.outputs - column))
        store_part(g.bias, column, summed, g.outputs - column)
    _scales_of_block(g, items, block_at(r.records, layer, 0).scales, 0, item)
    if more.inputs:
        _scales_of_block(g, items, more.scales, 1, item)


@serial
def _scales_of_block(g: OutputGradient, items: int, scales: int, block: int, panel: int) -> None:
    column, factors = panel * PANEL, scales + 8 * panel * PANEL
    for k in range(0, PANEL, LANES):
        store(factors, k, splat(np.float32(0)))
        for item in range(items):
            at = (2 * item + block) * g.outputs + column + k
            raise_magnitudes(factors, k, load_part(g.maxima, at, g.outputs - column - k), LANES)
    for c in range(PANEL):
        factor, share = _scale_of(float_at(factors, c))
        set_float(factors, c, factor)
        set_float(factors, PANEL + c, share)


@serial
def _round_item(r: Rows, item: int) -> None:
    """Writes the codes of an item's rows, by fours, into the panels of either block of all layers."""
    start = item * ROWS_PER_ITEM
    for layer in range(r.num_layers):
        for group in range(start // FOUR, groups_of_four(min(r.batch, start + ROWS_PER_ITEM))):
            _round_four_rows(r, layer, group)


@serial
def _round_four_rows(r: Rows, layer: int, group: int) -> None:
    g, key = gradient_at(r.records, layer), splitmix64(r.key, layer)
    first, more = block_at(r.records, layer, 0), block_at(r.records, layer, 1)
    r0, r1 = _row_of(g, r.batch, key, FOUR * group), _row_of(g, r.batch, key, FOUR * group + 1)
    r2, r3 = _row_of(g, r.batch, key, FOUR * group + 2), _row_of(g, r.batch, key, FOUR * group + 3)
    for k in range(0, g.outputs, LANES):
        v0, v1, v2, v3 = _part_of(g, r0, k), _part_of(g, r1, k), _part_of(g, r2, k), _part_of(g, r3, k)
        c0, c1 = random_words(r0.low, r0.high, k), random_words(r1.low, r1.high, k)
        c2, c3 = random_words(r2.low, r2.high, k), random_words(r3.low, r3.high, k)
        panel, lane = k // PANEL, k % PANEL
        at = (panel * r.groups + group) * GROUP_BYTES + FOUR * lane
        factor = load(first.scales, 2 * panel * PANEL + lane)
        a, b = _code(v0, r0.scale, factor, c0), _code(v1, r1.scale, factor, c1)
        c, d = _code(v2, r2.scale, factor, c2), _code(v3, r3.scale, factor, c3)
        store_four_bytes(first.codes + at, a, b, c, d)
        if more.inputs:
            factor = load(more.scales, 2 * panel * PANEL + lane)
            a, b = _code(v0, r0.more_scale, factor, c0), _code(v1, r1.more_scale, factor, c1)
            c, d = _code(v2, r2.more_scale, factor, c2), _code(v3, r3.more_scale, factor, c3)
            store_four_bytes(more.codes + at, a, b, c, d)


class _GradientRow(NamedTuple):
    """A row of the batch as its gradient is rounded."""

    place: int  # of its first number
    length: int  # 0 beyond the batch
    low: np.uint32
    high: np.uint32
    scale: np.float32  # of what the layer read
    more_scale: np.float32


@inlined
def _row_of(g: OutputGradient, batch: int, key: np.uint64, row: int) -> _GradientRow:
    word, place = splitmix64(key, row), g.grad + 4 * row * g.outputs
    low, high = np.uint32(word & np.uint64(0xFFFFFFFF)), np.uint32(word >> np.uint64(32))
    if row >= batch:  # counts as zeros
        return _GradientRow(place, 0, low, high, np.float32(0), np.float32(0))
    scale, more_scale = float_at(g.row_scales, 2 * row), float_at(g.row_scales, 2 * row + 1)
    return _GradientRow(place, g.outputs, low, high, scale, more_scale)


@inlined
def _part_of(g: OutputGradient, row: _GradientRow, column: int) -> Any:
    """Returns LANES columns of a row, zeros of none."""
    return load_part(row.place, column, row.length - column)


@inlined
def _code(value: Any, scale: np.float32, factor: Any, chances: Any) -> Any:
    """Rounds a gradient, times what the row's inputs are multiplied by, by chance."""
    scaled = multiply(multiply(value, splat(scale)), factor)
    return round_clamp(add_chance(scaled, chances, 0), -_LARGEST, _LARGEST)


@serial
def _multiply_unit(r: Rows, item: int) -> None:
    """Writes the gradient of a weight's PANEL rows and PANEL columns."""
    layer = 0
    while True:
        inputs = _panels_of_inputs(r.records, layer)
        units = panels_of(gradient_at(r.records, layer).outputs) * inputs
        if item < units:
            break
        item -= units
        layer += 1
    panel, of_inputs = item // inputs, item % inputs
    block, outputs = block_at(r.records, layer, 0), gradient_at(r.records, layer).outputs
    if of_inputs >= panels_of(block.inputs):
        of_inputs -= panels_of(block.inputs)
        block = block_at(r.records, layer, 1)
    _multiply_block(r, block, outputs, panel, of_inputs)


@serial
def _multiply_block(r: Rows, block: BlockGradient, outputs: int, panel: int, of_inputs: int) -> None:
    groups, sums = groups_of_four(r.batch), scratch_words()
    turned, begin = sums + 4 * PANEL * PANEL, sums + 8 * PANEL * PANEL
    codes = block.codes + panel * r.groups * GROUP_BYTES
    x = block.panels + of_inputs * r.groups * GROUP_BYTES
    for k in range(0, PANEL, LANES):
        store(begin, k, splat(np.float32(0)))
    if block.zero == SIGNED_ZERO:
        sum_of_zeros(codes, groups, begin)
    for k in range(0, PANEL, LANES):
        first = load(begin, k)
        for row in range(PANEL):
            store(sums, row * PANEL + k, first)
    for start in range(0, groups, _GROUPS_AT_ONCE):
        at, count = start * GROUP_BYTES, min(groups - start, _GROUPS_AT_ONCE)
        for row in range(0, PANEL, _TILE_ROWS):
            _add_products(x + at + FOUR * row, codes + at, count, sums + 4 * row * PANEL)
    _scale_and_turn(sums, block.scales + 4 * (2 * panel + 1) * PANEL, turned)
    for row in range(min(PANEL, outputs - panel * PANEL)):
        target = block.out + 4 * ((panel * PANEL + row) * block.out_stride + of_inputs * PANEL)
        for k in range(0, PANEL, LANES):
            store_part(target, k, load(turned, row * PANEL + k), block.inputs - of_inputs * PANEL - k)


@serial
def _scale_and_turn(sums: int, shares: int, turned: int) -> None:
    """Writes f32[PANEL outputs, PANEL inputs] from int32[PANEL inputs, PANEL outputs], which become FP32."""
    for k in range(0, PANEL, LANES):
        factor = load(shares, k)
        for row in range(PANEL):
            store(sums, row * PANEL + k, multiply(to_floats(load_words(sums, row * PANEL + k, LANES)), factor))
    for row in range(0, PANEL, LANES):
        for column in range(0, PANEL, LANES):
            source, target = sums + 4 * (row * PANEL + column), turned + 4 * (column * PANEL + row)
            transpose(source, PANEL, LANES, LANES, target, PANEL)


@intrinsic
def scratch_words(typing: Any) -> tuple[Any, Codegen]:
    """Returns the address of 2 PANEL^2 + PANEL words that live as long as the function."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        kind = ir.ArrayType(ir.FloatType(), 2 * PANEL * PANEL + PANEL)
        return builder.ptrtoint(cgutils.alloca_once(builder, kind), _I64)

    return types.int64(), codegen


@intrinsic
def _add_products(typing: Any, x: Any, codes: Any, groups: Any, sums: Any) -> tuple[Any, Codegen]:
    """Adds to int32[_TILE_ROWS, PANEL] the products of some inputs and a panel of outputs over groups of rows."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        x, codes, groups, sums = args
        offsets = [_I64(FOUR * row) for row in range(_TILE_ROWS)]
        rows = [builder.add(sums, _I64(4 * PANEL * row)) for row in range(_TILE_ROWS)]
        first = [load_words_of_panels(builder, row, 1) for row in rows]
        added = byte_sums(builder, (x, offsets), (codes, [_I64(0)]), groups, first, GROUP_BYTES)
        for row, of_row in zip(rows, added, strict=True):
            for k, total in enumerate(of_row):
                builder.store(total, element_pointer(builder, row, _I64(k * LANES), WORD_VECTOR, 4), align=4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), codegen
