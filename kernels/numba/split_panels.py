"""Products of FP32 rows with codes of 8 bits or fewer, by instructions that multiply bytes, as exact as FP32's own.

A row's numbers are rounded to multiples of one power of two, so that 24 bits hold the largest, as many as it has in
FP32; where some are negative, 23 bits. The three bytes of a number are multiplied one by one; their sums in int32 are
exact, and are put together in FP32. Three instructions for four inputs take the place of four.

Numbers that may be negative are made unsigned by adding 2^23, which the sums of the highest bytes begin with less.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types

from ..jit.compile import serial
from ..jit.memory import Codegen, Intrinsic, call, element_pointer, intrinsic, set_float
from ..jit.simd import FLOAT_VECTOR, LANES, WORD_VECTOR, every_lane, load, load_part, multiply, splat
from ..jit.simd_integers import (
    HAS_BYTE_PRODUCTS,
    as_float,
    larger,
    largest,
    magnitude,
    no_words,
    store_three_bytes,
)
from .integer_panels import FOUR, IntegerProduct, byte_sums, load_words_of_panels
from .panels import PANEL, finish

PIECES = 3
"""The bytes of a number."""

LEAST_OUTPUTS = 128
"""Of a layer for which this is quicker: each row is rounded once, whatever the outputs."""

CAN_SPLIT = HAS_BYTE_PRODUCTS and LANES == 16
"""Whether it is quicker at all: without the instruction it is not, and with half as many registers sums do not fit."""

_ROWS, _PANELS = 4, 4
"""Rows multiplied together, with a panel; and panels with one row."""

_EXPONENT_BITS, _BITS = 23, 24
_BIAS, _NO_NUMBER = 127, 255
_LEAST_EXPONENT = 27
"""Of a row's largest number, as FP32 stores it: below it all count as zeros, as the factor has no number."""

_NAN = 0x7FC00000

_I64, _F32 = ir.IntType(64), ir.FloatType()


def _micro_kernel(rows: int, panels: int) -> Intrinsic:
    """Makes what multiplies this many rows with this many panels, the sums of all pieces in registers."""

    @intrinsic
    def multiply_tile(
        typing: Any,
        x: Any,
        x_stride: Any,
        weight: Any,
        groups: Any,
        begin: Any,
        row_scales: Any,
        scale: Any,
        bias: Any,
        rectify: Any,
        out: Any,
        out_stride: Any,
        count: Any,
    ) -> tuple[Any, Codegen]:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            x, x_stride, weight, groups, begin, row_scales, scale, bias, rectify, out, out_stride, count = args
            piece = builder.udiv(x_stride, _I64(PIECES))
            x_offsets = [builder.mul(piece, _I64(number)) for number in range(PIECES * rows)]
            panel_bytes = builder.mul(groups, _I64(FOUR * PANEL))
            panel_offsets = [builder.mul(panel_bytes, _I64(number)) for number in range(panels)]
            zeros = [ir.Constant(WORD_VECTOR, [0] * LANES)] * (2 * panels)
            first = [zeros, zeros, load_words_of_panels(builder, begin, panels)] * rows
            sums = byte_sums(builder, (x, x_offsets), (weight, panel_offsets), groups, first)
            by_row = [_joined(builder, sums[PIECES * row : PIECES * (row + 1)], row_scales, row) for row in range(rows)]
            finish(builder, by_row, (scale, bias, rectify), (out, out_stride, count), panels)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 12), codegen

    return multiply_tile


def _joined(builder: ir.IRBuilder, pieces: list[list[Any]], row_scales: Any, row: int) -> list[Any]:
    """Generates a row's sums in FP32 from those of its pieces, the lowest first."""
    step = ir.Constant(FLOAT_VECTOR, [256.0] * LANES)
    place = element_pointer(builder, row_scales, _I64(2 * row), _F32, 4)
    factor = every_lane(builder, builder.load(place, align=4))
    joined = []
    for of_register in zip(*pieces, strict=True):
        low, middle, high = (builder.sitofp(one, FLOAT_VECTOR) for one in of_register)
        for lower in (middle, low):
            high = call(builder, f"llvm.fma.v{LANES}f32", FLOAT_VECTOR, [high, step, lower])
        joined.append(builder.fmul(high, factor))
    return joined


def _tile_of(rows: int, panels: int) -> Any:
    multiply_tile = _micro_kernel(rows, panels)

    @serial
    def multiply_some(p: IntegerProduct, out: int, out_stride: int, row: int, panel: int) -> None:
        first, groups = panel * PANEL, (p.inputs + FOUR - 1) // FOUR
        multiply_tile(
            p.codes + row * p.codes_stride,
            p.codes_stride,
            p.weight + FOUR * first * groups,
            groups,
            p.first_sums + 4 * first,
            p.row_scales + 8 * row,
            p.scale + 4 * first,
            p.bias + 4 * first,
            p.rectify,
            out + 4 * (row * out_stride + first),
            out_stride,
            p.outputs - first,
        )

    return multiply_some


_many_rows, _one_row, _one_row_wide = (_tile_of(*shape) for shape in ((_ROWS, 1), (1, 1), (1, _PANELS)))


@serial
def multiply_split(p: IntegerProduct, x: int, x_stride: int, rows: int, out: int, out_stride: int) -> None:
    """Writes f32 out[rows, outputs] of f32 x[rows, inputs]; strides in floats.

    :param p: its `zero` is that of the highest bytes; a row of its `codes` is PIECES stretches, the lowest bytes first.
    """
    for row in range(rows):
        _split_row(p, x + 4 * row * x_stride, row)
    panels = (p.outputs + PANEL - 1) // PANEL
    together = rows // _ROWS * _ROWS
    for panel in range(panels):
        for row in range(0, together, _ROWS):
            _many_rows(p, out, out_stride, row, panel)
    for row in range(together, rows):
        wide = panels // _PANELS * _PANELS
        for panel in range(0, wide, _PANELS):
            _one_row_wide(p, out, out_stride, row, panel)
        for panel in range(wide, panels):
            _one_row(p, out, out_stride, row, panel)


@serial
def _split_row(p: IntegerProduct, x: int, row: int) -> None:
    """Writes a row's bytes, some beyond its inputs, and what to multiply its sums by."""
    codes, piece = p.codes + row * p.codes_stride, p.codes_stride // PIECES
    whole = p.inputs // LANES * LANES
    magnitudes = no_words()
    for k in range(0, whole, LANES):
        magnitudes = larger(magnitudes, magnitude(load(x, k)))
    if whole < p.inputs:
        magnitudes = larger(magnitudes, magnitude(load_part(x, whole, p.inputs - whole)))
    exponent, sign = np.int64(largest(magnitudes)) >> _EXPONENT_BITS, np.int64(1 if p.zero else 0)
    factor, share = np.float32(0), np.float32(0)
    if exponent == _NO_NUMBER:  # whatever is no number makes all that comes of it so
        share = as_float(np.int32(_NAN))
    elif exponent >= _LEAST_EXPONENT:
        unit = exponent - (_BITS - 1) + sign  # of the last bit that is kept
        share = as_float(np.int32(unit << _EXPONENT_BITS))
        factor = as_float(np.int32((2 * _BIAS - unit) << _EXPONENT_BITS))
    set_float(p.row_scales + 8 * row, 0, share)
    every, zero = splat(factor), p.zero << 16
    for k in range(0, whole, LANES):
        store_three_bytes(codes, k, piece, multiply(load(x, k), every), zero)
    if whole < p.inputs:
        store_three_bytes(codes, whole, piece, multiply(load_part(x, whole, p.inputs - whole), every), zero)
