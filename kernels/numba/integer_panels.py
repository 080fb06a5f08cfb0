"""Products of rows of bytes with a weight of bytes in panels: sums in int32 are exact, whatever the processor.

Rows are rounded to bytes first, each by a scale of its own, or two: what a row reads first may be of another size than
the rest. A panel holds two registers' width of outputs, for four inputs after four, as an instruction takes them that
sums four products of an unsigned and a signed byte. Inputs that may be negative are made unsigned by adding 128, which
the sums begin with less.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numpy.typing import NDArray

from ..jit.compile import inlined, serial
from ..jit.memory import Codegen, Intrinsic, element_pointer, float_at, intrinsic, set_float
from ..jit.simd import FLOAT_VECTOR, LANES, WORD_VECTOR, every_lane, load, load_part, multiply, round_clamp, splat
from ..jit.simd_integers import as_float, byte_products, larger, largest, magnitude, no_words, store_bytes
from ..packed_arrays import LEAST_MAGNITUDE
from .panels import PANEL, finish

FOUR = 4
"""Inputs whose products are summed by one instruction."""

SIGNED_ZERO = 128
"""Added to the INT8 code of an input that may be negative, since `vpdpbusd` takes its first factor without a sign."""

_LARGEST, _INFINITE = np.float32(255), np.float32(np.inf)

ROWS = 12 if LANES == 16 else 4
_FEW_ROWS = 4 if LANES == 16 else 2
_PANELS = 4
"""Rows and panels multiplied together, as in `panels`."""

GROUP_BYTES = 2 * LANES * FOUR
"""Bytes that hold, for each output of a panel, its weights of four inputs in a row."""

_I32, _I64, _F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()


def groups_of(inputs: int) -> int:
    """Returns the groups of four of so many inputs."""
    return -(-inputs // FOUR)


def packed_bytes(codes: NDArray[np.float32], first_inputs: int) -> NDArray[np.int8]:
    """Returns the panels of codes [outputs, inputs]; the first inputs, and the others, fill groups of their own."""
    blocks = [codes[:, :first_inputs], codes[:, first_inputs:]]
    padded = [np.pad(one, ((0, -len(one) % PANEL), (0, -one.shape[1] % FOUR))) for one in blocks]
    joined = np.concatenate(padded, axis=1).astype(np.int8)
    in_groups = joined.reshape(-1, 2, LANES, joined.shape[1] // FOUR, FOUR)
    return np.ascontiguousarray(in_groups.transpose(0, 3, 1, 2, 4)).ravel()


def first_sums(codes: NDArray[np.float32], first_inputs: int, zero: int) -> NDArray[np.int32]:
    """Returns what the sums of either block begin with, int32[2, outputs in whole panels]."""
    outputs = len(codes)
    sums = np.zeros((2, outputs + -outputs % PANEL), np.int32)
    for block, its in enumerate((codes[:, :first_inputs], codes[:, first_inputs:])):
        sums[block, :outputs] = -zero * its.sum(axis=1, dtype=np.float64)
    return sums


class IntegerProduct(NamedTuple):
    """A layer that multiplies bytes; all but the numbers are addresses."""

    weight: int  # panels
    first_sums: int  # int32[2, outputs in whole panels]
    inputs: int
    first_inputs: int  # of those, how many make the first block: all, or fewer
    zero: int  # what is added to inputs
    grid: int  # f32[4]: 1 / scale, scale, least and largest code of all inputs; or 0
    outputs: int
    scale: int  # f32[outputs in whole panels]
    bias: int  # the same
    rectify: int
    codes: int  # scratch: uint8, rows `codes_stride` bytes apart
    codes_stride: int
    row_scales: int  # scratch: f32[rows, 2]


def _micro_kernel(rows: int, panels: int) -> Intrinsic:
    """Makes what multiplies this many rows with this many panels, its sums in registers."""

    @intrinsic
    def multiply_tile(
        typing: Any,
        x: Any,
        x_stride: Any,
        weight: Any,
        groups: Any,
        more_groups: Any,
        begin: Any,
        more_begin: Any,
        row_scales: Any,
        scale: Any,
        bias: Any,
        rectify: Any,
        out: Any,
        out_stride: Any,
        count: Any,
    ) -> tuple[Any, Codegen]:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            x, x_stride, weight, groups, more_groups, begin, more_begin, row_scales = args[:8]
            scale, bias, rectify, out, out_stride, count = args[8:]
            panel_bytes = builder.mul(builder.add(groups, more_groups), _I64(GROUP_BYTES))
            strides = x_stride, panel_bytes
            sums = _scaled_sums(builder, (x, weight, begin, row_scales), strides, groups, (rows, panels))
            # Where they wait for those of the second block: LLVM might keep some in registers that its loop needs.
            kept = cgutils.alloca_once(builder, ir.ArrayType(FLOAT_VECTOR, len(sums)))
            places = [builder.gep(kept, [_I32(0), _I32(k)]) for k in range(len(sums))]
            for place, value in zip(places, sums, strict=True):
                builder.store(value, place)
            with builder.if_then(builder.icmp_signed("!=", more_groups, _I64(0))):
                more_x = builder.add(x, builder.mul(groups, _I64(FOUR)))
                more_weight = builder.add(weight, builder.mul(groups, _I64(GROUP_BYTES)))
                addresses = more_x, more_weight, more_begin, builder.add(row_scales, _I64(4))
                more = _scaled_sums(builder, addresses, strides, more_groups, (rows, panels))
                for place, value in zip(places, more, strict=True):
                    builder.store(builder.fadd(builder.load(place), value), place)
            sums = [builder.load(place) for place in places]
            by_row = [sums[row * 2 * panels : (row + 1) * 2 * panels] for row in range(rows)]
            finish(builder, by_row, (scale, bias, rectify), (out, out_stride, count), panels)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 14), codegen

    return multiply_tile


def _scaled_sums(
    builder: ir.IRBuilder,
    addresses: tuple[Any, Any, Any, Any],
    strides: tuple[Any, Any],
    groups: Any,
    shape: tuple[int, int],
) -> list[Any]:
    """Generates the loop over one block's inputs; returns its sums times the rows' scales, row by row."""
    x, weight, begin, row_scales = addresses
    rows, panels = shape
    x_offsets = [builder.mul(strides[0], _I64(r)) for r in range(rows)]
    panel_offsets = [builder.mul(strides[1], _I64(p)) for p in range(panels)]
    first = load_words_of_panels(builder, begin, panels)
    added = byte_sums(builder, (x, x_offsets), (weight, panel_offsets), groups, [first] * rows)
    scaled = []
    for row, of_row in enumerate(added):
        place = element_pointer(builder, row_scales, _I64(2 * row), _F32, 4)
        factor = every_lane(builder, builder.load(place, align=4))
        scaled += [builder.fmul(builder.sitofp(total, FLOAT_VECTOR), factor) for total in of_row]
    return scaled


def load_words_of_panels(builder: ir.IRBuilder, place: Any, panels: int) -> list[Any]:
    """Generates the load of an int32 for each output of some panels, register by register."""
    registers = [_I64(k * LANES) for k in range(2 * panels)]
    return [builder.load(element_pointer(builder, place, k, WORD_VECTOR, 4), align=4) for k in registers]


def byte_sums(
    builder: ir.IRBuilder,
    rows_of_x: tuple[Any, Sequence[Any]],
    weight_and_panels: tuple[Any, Sequence[Any]],
    groups: Any,
    first: Sequence[Sequence[Any]],
    x_step: int = FOUR,
) -> list[list[Any]]:
    """Generates the loop over groups of inputs; returns the int32 sums of each row of bytes, register by register.

    :param rows_of_x: the address of the bytes, and how far from it each row begins.
    :param weight_and_panels: the address of the weight, and how far from it each panel begins.
    :param first: what the sums of each row begin with.
    :param x_step: how far behind a row's bytes of one group those of the next one stand.
    """
    (x, x_offsets), (weight, panel_offsets) = rows_of_x, weight_and_panels
    x_end = builder.add(x, builder.mul(groups, _I64(x_step)))
    before = builder.block
    loop, done = builder.append_basic_block("groups"), builder.append_basic_block("summed")
    builder.branch(loop)
    builder.position_at_end(loop)
    x_at, weight_at = builder.phi(_I64), builder.phi(_I64)
    sums = [[builder.phi(WORD_VECTOR) for _ in of_row] for of_row in first]
    weights = []
    for offset in panel_offsets:
        of_panel = builder.add(weight_at, offset)
        places = [element_pointer(builder, of_panel, _I64(k * LANES), WORD_VECTOR, 4) for k in range(2)]
        weights += [builder.load(place, align=4) for place in places]
    added = []
    for offset, of_row in zip(x_offsets, sums, strict=True):
        place = element_pointer(builder, builder.add(x_at, offset), _I64(0), _I32, 1)
        four = every_lane(builder, builder.load(place, align=4))
        added.append([byte_products(builder, s, four, w) for w, s in zip(weights, of_row, strict=True)])
    x_next, weight_next = builder.add(x_at, _I64(x_step)), builder.add(weight_at, _I64(GROUP_BYTES))
    loop_end = builder.block
    builder.cbranch(builder.icmp_unsigned("<", x_next, x_end), loop, done)
    for phi, start, later in ((x_at, x, x_next), (weight_at, weight, weight_next)):
        phi.add_incoming(start, before)
        phi.add_incoming(later, loop_end)
    for of_row, first_of_row, added_row in zip(sums, first, added, strict=True):
        for phi, start, later in zip(of_row, first_of_row, added_row, strict=True):
            phi.add_incoming(start, before)
            phi.add_incoming(later, loop_end)
    builder.position_at_end(done)
    return added


def _tile_of(rows: int, panels: int) -> Any:
    multiply_tile = _micro_kernel(rows, panels)

    @serial
    def multiply_some(p: IntegerProduct, out: int, out_stride: int, row: int, panel: int) -> None:
        first, whole = panel * PANEL, (p.outputs + PANEL - 1) // PANEL * PANEL
        groups = (p.first_inputs + FOUR - 1) // FOUR
        more_groups = (p.inputs - p.first_inputs + FOUR - 1) // FOUR
        multiply_tile(
            p.codes + row * p.codes_stride,
            p.codes_stride,
            p.weight + FOUR * first * (groups + more_groups),
            groups,
            more_groups,
            p.first_sums + 4 * first,
            p.first_sums + 4 * (whole + first),
            p.row_scales + 8 * row,
            p.scale + 4 * first,
            p.bias + 4 * first,
            p.rectify,
            out + 4 * (row * out_stride + first),
            out_stride,
            p.outputs - first,
        )

    return multiply_some


many_rows, _few_rows, _one_row, _one_row_wide = (
    _tile_of(*shape) for shape in ((ROWS, 1), (_FEW_ROWS, 1), (1, 1), (1, _PANELS))
)


@serial
def multiply_bytes(p: IntegerProduct, x: int, x_stride: int, rows: int, out: int, out_stride: int) -> None:
    """Writes f32 out[rows, outputs] of f32 x[rows, inputs], rounded to bytes on the way; strides in floats."""
    for row in range(rows):
        round_row(p, x + 4 * row * x_stride, row)
    panels = (p.outputs + PANEL - 1) // PANEL
    together = rows // ROWS * ROWS
    few = together + (rows - together) // _FEW_ROWS * _FEW_ROWS
    for panel in range(panels):
        for row in range(0, together, ROWS):
            many_rows(p, out, out_stride, row, panel)
        for row in range(together, few, _FEW_ROWS):
            _few_rows(p, out, out_stride, row, panel)
    for row in range(few, rows):
        wide = panels // _PANELS * _PANELS
        for panel in range(0, wide, _PANELS):
            _one_row_wide(p, out, out_stride, row, panel)
        for panel in range(wide, panels):
            _one_row(p, out, out_stride, row, panel)


@serial
def round_row(p: IntegerProduct, x: int, row: int) -> None:
    """Writes a row's bytes and its scales."""
    codes, scales = p.codes + row * p.codes_stride, p.row_scales + 8 * row
    set_float(scales, 0, _round_block(p, x, p.first_inputs, codes))
    if p.first_inputs < p.inputs:
        at = (p.first_inputs + FOUR - 1) // FOUR * FOUR
        rest = p.inputs - p.first_inputs
        set_float(scales, 1, _round_block(p, x + 4 * p.first_inputs, rest, codes + at))


@inlined
def _round_block(p: IntegerProduct, x: int, count: int, codes: int) -> np.float32:
    """Writes bytes of so many numbers, and some beyond; returns by what to multiply them."""
    whole = count // LANES * LANES
    magnitudes = no_words()
    for k in range(0, whole, LANES):
        magnitudes = larger(magnitudes, magnitude(load(x, k)))
    if whole < count:
        magnitudes = larger(magnitudes, magnitude(load_part(x, whole, count - whole)))
    most = as_float(largest(magnitudes))
    if p.grid:
        inverse, least, last = splat(float_at(p.grid, 0)), float_at(p.grid, 2), float_at(p.grid, 3)
        for k in range(0, count, LANES):
            rounded = round_clamp(multiply(load_part(x, k, count - k), inverse), least, last)
            store_bytes(codes, k, rounded, p.zero)
        # Whatever is no number makes all that comes of it so.
        scale: np.float32 = float_at(p.grid, 1) if most == most else most
        return scale
    steps = _LARGEST - np.float32(p.zero)
    factor = splat(steps / most if most >= LEAST_MAGNITUDE and most < _INFINITE else np.float32(0))
    for k in range(0, whole, LANES):
        store_bytes(codes, k, multiply(load(x, k), factor), p.zero)
    if whole < count:
        store_bytes(codes, whole, multiply(load_part(x, whole, count - whole), factor), p.zero)
    share: np.float32 = most / steps
    return share
