"""Products of rows with a weight that lies in panels: one outcome, whichever rows are multiplied together.

A panel holds two registers' width of outputs for all inputs, one input after another. Every output is summed over the
inputs in their order by one multiply-add each, so that a row's result has the same bits alone as among others. Weights
are FP32, or codes of at most 8 bits as BF16, which holds those exactly, with a scale for each output.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import types
from numpy.typing import NDArray

from ..jit.compile import serial
from ..jit.memory import Codegen, Intrinsic, call, element_pointer, intrinsic
from ..jit.simd import (
    FLOAT_VECTOR,
    LANES,
    WORD_VECTOR,
    ZEROS,
    every_lane,
    first_lanes,
    masked_store,
    same_words,
    transposed,
)

PANEL = 2 * LANES
"""Outputs of a panel."""

_ROWS = 12 if LANES == 16 else 4
_FEW_ROWS = 4 if LANES == 16 else 2
"""Rows multiplied together: their sums, two registers a row, leave room for a weight among 32 registers, or 16."""

_PANELS = 4
"""Panels of one row at a time: as many sums as a multiply-add takes cycles, twice."""

_I32, _I64, _F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()


def packed_panels(weight: NDArray[np.float32], is_bf16: bool) -> NDArray[Any]:
    """Returns the panels of a weight f32[outputs, inputs]: f32 or uint32, the latter two BF16 of one input each."""
    outputs, inputs = weight.shape
    panels = -(-outputs // PANEL)
    padded = np.zeros((panels * PANEL, inputs), np.float32)
    padded[:outputs] = weight
    by_input = padded.reshape(panels, 2, LANES, inputs).transpose(0, 3, 1, 2)
    if not is_bf16:
        return np.ascontiguousarray(by_input).ravel()
    halves = np.ascontiguousarray(by_input).view(np.uint32) >> 16
    return np.ascontiguousarray(halves[:, :, 0] | (halves[:, :, 1] << 16)).ravel()


class Product(NamedTuple):
    """Rows and a weight; all but the numbers are addresses."""

    x: int  # f32, rows `x_stride` floats apart
    x_stride: int
    weight: int  # panels
    is_bf16: int
    inputs: int
    outputs: int
    scale: int  # f32[outputs, rounded up to whole panels]
    bias: int  # the same
    rectify: int
    out: int  # f32, rows `out_stride` floats apart
    out_stride: int


def _micro_kernel(rows: int, panels: int, is_bf16: bool) -> Intrinsic:
    """Makes what multiplies this many rows with this many panels, its sums in registers."""

    @intrinsic
    def multiply_tile(
        typing: Any,
        x: Any,
        x_stride: Any,
        weight: Any,
        inputs: Any,
        scale: Any,
        bias: Any,
        rectify: Any,
        out: Any,
        out_stride: Any,
        count: Any,
    ) -> tuple[Any, Codegen]:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            x, x_stride, weight, inputs, scale, bias, rectify, out, out_stride, count = args
            sums = _sums(builder, (x, x_stride), weight, inputs, (rows, panels, is_bf16))
            finish(builder, sums, (scale, bias, rectify), (out, out_stride, count), panels)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 10), codegen

    return multiply_tile


def _sums(
    builder: ir.IRBuilder, rows_of_x: tuple[Any, Any], weight: Any, inputs: Any, shape: tuple[int, int, bool]
) -> list[list[Any]]:
    """Generates the loop over the inputs; returns, of each row, the sums of all registers of outputs."""
    rows, panels, is_bf16 = shape
    x, stride = rows_of_x
    input_bytes = LANES * 4 * (1 if is_bf16 else 2)
    to_next_row = builder.mul(stride, _I64(4))
    row_offsets = [builder.mul(to_next_row, _I64(r)) for r in range(rows)]
    panel_bytes = builder.mul(inputs, _I64(input_bytes))
    panel_offsets = [builder.mul(panel_bytes, _I64(p)) for p in range(panels)]
    x_end = builder.add(x, builder.mul(inputs, _I64(4)))
    before = builder.block
    loop, done = builder.append_basic_block("inputs"), builder.append_basic_block("summed")
    builder.branch(loop)
    builder.position_at_end(loop)
    x_at, weight_at = builder.phi(_I64), builder.phi(_I64)
    sums = [[builder.phi(FLOAT_VECTOR) for _ in range(2 * panels)] for _ in range(rows)]
    weights = [
        vector for offset in panel_offsets for vector in _weights(builder, builder.add(weight_at, offset), is_bf16)
    ]
    added = []
    for offset, of_row in zip(row_offsets, sums, strict=True):
        place = element_pointer(builder, builder.add(x_at, offset), _I64(0), _F32, 4)
        value = every_lane(builder, builder.load(place, align=4))
        added.append(
            [
                call(builder, f"llvm.fma.v{LANES}f32", FLOAT_VECTOR, [value, w, s])
                for w, s in zip(weights, of_row, strict=True)
            ]
        )
    x_next, weight_next = builder.add(x_at, _I64(4)), builder.add(weight_at, _I64(input_bytes))
    loop_end = builder.block
    builder.cbranch(builder.icmp_unsigned("<", x_next, x_end), loop, done)
    for phi, first, later in ((x_at, x, x_next), (weight_at, weight, weight_next)):
        phi.add_incoming(first, before)
        phi.add_incoming(later, loop_end)
    for of_row, added_row in zip(sums, added, strict=True):
        for phi, later in zip(of_row, added_row, strict=True):
            phi.add_incoming(ZEROS, before)
            phi.add_incoming(later, loop_end)
    builder.position_at_end(done)
    return added


def _weights(builder: ir.IRBuilder, place: Any, is_bf16: bool) -> Sequence[Any]:
    """Generates the load of one input's weights of a panel, two registers."""
    if not is_bf16:
        places = [element_pointer(builder, place, _I64(k * LANES), FLOAT_VECTOR, 4) for k in range(2)]
        return [builder.load(at, align=4) for at in places]
    words = builder.load(element_pointer(builder, place, _I64(0), WORD_VECTOR, 4), align=4)
    halves = builder.shl(words, same_words(16)), builder.and_(words, same_words(-65536))
    return [builder.bitcast(half, FLOAT_VECTOR) for half in halves]


def finish(
    builder: ir.IRBuilder, sums: list[list[Any]], affine: tuple[Any, Any, Any], out: tuple[Any, Any, Any], panels: int
) -> None:
    """Generates what scales the sums, adds the bias, rectifies, and writes the first `count` outputs of each row."""
    scale, bias, rectify = affine
    place, stride, count = out
    is_rectified = builder.icmp_signed("!=", rectify, _I64(0))
    least = builder.select(is_rectified, ZEROS, ir.Constant(FLOAT_VECTOR, [float("-inf")] * LANES))
    for k in range(2 * panels):
        first = _I64(k * LANES)
        factor, addend = (
            builder.load(element_pointer(builder, at, first, FLOAT_VECTOR, 4), align=4) for at in (scale, bias)
        )
        mask = first_lanes(builder, builder.sub(count, first))
        for row, of_row in enumerate(sums):
            value = builder.fadd(builder.fmul(of_row[k], factor), addend)
            # Not smaller rather than larger: NaN stays.
            value = builder.select(builder.fcmp_ordered("<", value, least), least, value)
            at = builder.add(builder.mul(stride, _I64(row)), first)
            masked_store(builder, place, at, mask, value)


def _one_output_kernel(is_bf16: bool) -> Intrinsic:
    """Makes what multiplies LANES rows with a weight of one output, a lane for each row.

    A panel of one output would be as much work as one of 2 LANES. `inputs` are a multiple of LANES.
    """

    @intrinsic
    def multiply_rows(
        typing: Any,
        x: Any,
        x_stride: Any,
        weight: Any,
        inputs: Any,
        scale: Any,
        bias: Any,
        rectify: Any,
        out: Any,
        out_stride: Any,
    ) -> tuple[Any, Codegen]:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            x, x_stride, weight, inputs, scale, bias, rectify, out, out_stride = args
            total = _sums_of_rows(builder, (x, x_stride), weight, inputs, is_bf16)
            first = _I64(0)
            factor, addend = (
                every_lane(builder, builder.load(element_pointer(builder, at, first, _F32, 4), align=4))
                for at in (scale, bias)
            )
            value = builder.fadd(builder.fmul(total, factor), addend)
            is_less = builder.fcmp_ordered("<", value, ZEROS)
            is_cut = builder.and_(is_less, every_lane(builder, builder.icmp_signed("!=", rectify, _I64(0))))
            value = builder.select(is_cut, ZEROS, value)
            for row in range(LANES):
                at = element_pointer(builder, out, builder.mul(out_stride, _I64(row)), _F32, 4)
                builder.store(builder.extract_element(value, _I32(row)), at, align=4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 9), codegen

    return multiply_rows


def _sums_of_rows(builder: ir.IRBuilder, rows_of_x: tuple[Any, Any], weight: Any, inputs: Any, is_bf16: bool) -> Any:
    """Generates the loop over the inputs, LANES at a time; returns the sums of LANES rows with the first output."""
    x, stride = rows_of_x
    input_bytes = LANES * 4 * (1 if is_bf16 else 2)
    before, loop, done = builder.block, builder.append_basic_block("inputs"), builder.append_basic_block("summed")
    builder.branch(loop)
    builder.position_at_end(loop)
    first, total = builder.phi(_I64), builder.phi(FLOAT_VECTOR)
    places = [builder.add(builder.mul(stride, _I64(row)), first) for row in range(LANES)]
    tile = [builder.load(element_pointer(builder, x, place, FLOAT_VECTOR, 4), align=4) for place in places]
    added, weight_at = total, builder.add(weight, builder.mul(first, _I64(input_bytes)))
    for k, column in enumerate(transposed(builder, tile)):
        word = builder.load(element_pointer(builder, weight_at, _I64(k * input_bytes // 4), _I32, 4), align=4)
        value = builder.bitcast(builder.shl(word, _I32(16)) if is_bf16 else word, _F32)
        added = call(builder, f"llvm.fma.v{LANES}f32", FLOAT_VECTOR, [column, every_lane(builder, value), added])
    later = builder.add(first, _I64(LANES))
    builder.cbranch(builder.icmp_unsigned("<", later, inputs), loop, done)
    for phi, begin, following in ((first, _I64(0), later), (total, ZEROS, added)):
        phi.add_incoming(begin, before)
        phi.add_incoming(following, loop)
    builder.position_at_end(done)
    return added


_one_output_of_codes, _one_output_of_floats = (_one_output_kernel(is_bf16) for is_bf16 in (True, False))


@serial
def _multiply_one_output(p: Product, row: int) -> None:
    x, out = p.x + 4 * row * p.x_stride, p.out + 4 * row * p.out_stride
    if p.is_bf16:
        _one_output_of_codes(x, p.x_stride, p.weight, p.inputs, p.scale, p.bias, p.rectify, out, p.out_stride)
    else:
        _one_output_of_floats(x, p.x_stride, p.weight, p.inputs, p.scale, p.bias, p.rectify, out, p.out_stride)


def _tile_of(rows: int, panels: int) -> Any:
    of_codes, of_floats = _micro_kernel(rows, panels, True), _micro_kernel(rows, panels, False)

    @serial
    def multiply_tile(p: Product, row: int, panel: int) -> None:
        x, first = p.x + 4 * row * p.x_stride, panel * PANEL
        scale, bias, out = p.scale + 4 * first, p.bias + 4 * first, p.out + 4 * (row * p.out_stride + first)
        count, stride = p.outputs - first, p.out_stride
        if p.is_bf16:
            weight = p.weight + 2 * first * p.inputs
            of_codes(x, p.x_stride, weight, p.inputs, scale, bias, p.rectify, out, stride, count)
        else:
            weight = p.weight + 4 * first * p.inputs
            of_floats(x, p.x_stride, weight, p.inputs, scale, bias, p.rectify, out, stride, count)

    return multiply_tile


_many_rows, _few_rows, _one_row, _one_row_wide = (
    _tile_of(*shape) for shape in ((_ROWS, 1), (_FEW_ROWS, 1), (1, 1), (1, _PANELS))
)


@serial
def multiply(p: Product, rows: int) -> None:
    """Writes out[rows, outputs] = x[rows, inputs] @ weight.T * scale + bias, rectified if asked for."""
    panels = (p.outputs + PANEL - 1) // PANEL
    done = 0
    if p.outputs == 1 and p.inputs % LANES == 0:
        done = rows // LANES * LANES
        for row in range(0, done, LANES):
            _multiply_one_output(p, row)
    together = done + (rows - done) // _ROWS * _ROWS
    few = together + (rows - together) // _FEW_ROWS * _FEW_ROWS
    for panel in range(panels):
        for row in range(done, together, _ROWS):
            _many_rows(p, row, panel)
        for row in range(together, few, _FEW_ROWS):
            _few_rows(p, row, panel)
    for row in range(few, rows):
        wide = panels // _PANELS * _PANELS
        for panel in range(0, wide, _PANELS):
            _one_row_wide(p, row, panel)
        for panel in range(wide, panels):
            _one_row(p, row, panel)
