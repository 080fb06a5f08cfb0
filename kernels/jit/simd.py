"""LLVM vectors of floats for numba kernels: its own loops are several times slower than explicit vectors here.

A `Floats` holds LANES f32, a `Words` as many int32 (`simd_integers`). Memory is named by the address of an array's
first element (int64) and an element index; nothing is bounds-checked. `*_part` touch only the first `count` lanes, so
that any dimension works: lanes beyond it read as 0 and are never written. BF16 is a form of numbers in memory alone: in
registers they are FP32.
"""

from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.core.datamodel import models
from numba.extending import register_model

from .compile import inlined
from .memory import Codegen, as_index, call, element_pointer, intrinsic

LANES = 16 if llvm.get_host_cpu_features().get("avx512f", False) else 8

_I16, _I32, _I64, _F32 = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
FLOAT_VECTOR, WORD_VECTOR = ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES)
_HALVES = ir.VectorType(_I16, LANES)
ZEROS = ir.Constant(FLOAT_VECTOR, [0.0] * LANES)


class _VectorType(types.Type):
    """A numba type whose values live in one vector register."""


FLOATS, WORDS = _VectorType("Floats"), _VectorType("Words")


@register_model(_VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: _VectorType) -> None:
        super().__init__(manager, kind, FLOAT_VECTOR if kind == FLOATS else WORD_VECTOR)


def same_words(value: int) -> ir.Constant:
    """Generates a vector of one int32 in every lane."""
    return ir.Constant(WORD_VECTOR, [value] * LANES)


def every_lane(builder: ir.IRBuilder, value: Any) -> Any:
    """Generates a vector of LANES copies."""
    kind = ir.VectorType(value.type, LANES)
    single = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(single, ir.Constant(kind, ir.Undefined), same_words(0))


def first_lanes(builder: ir.IRBuilder, count: Any) -> Any:
    """Generates the mask of the first `count` lanes; all of them for a count beyond LANES."""
    limit = builder.trunc(count, _I32)
    return builder.icmp_signed("<", ir.Constant(WORD_VECTOR, list(range(LANES))), every_lane(builder, limit))


def masked_load(builder: ir.IRBuilder, place: Any, index: Any, mask: Any, kind: ir.VectorType) -> Any:
    """Generates a load of the lanes of `mask` from element `index` on, zeros elsewhere."""
    name, width = _element(kind)
    pointer = element_pointer(builder, place, index, kind, width)
    arguments = [pointer, ir.Constant(_I32, width), mask, ir.Constant(kind, [0] * LANES)]
    return call(builder, f"llvm.masked.load.v{LANES}{name}.p0", kind, arguments)


def masked_store(builder: ir.IRBuilder, place: Any, index: Any, mask: Any, value: Any) -> None:
    """Generates a store of the lanes of `mask` from element `index` on."""
    name, width = _element(value.type)
    pointer = element_pointer(builder, place, index, value.type, width)
    arguments = [value, pointer, ir.Constant(_I32, width), mask]
    call(builder, f"llvm.masked.store.v{LANES}{name}.p0", ir.VoidType(), arguments)


def _element(kind: ir.VectorType) -> tuple[str, int]:
    """Returns the name and the bytes of what a vector holds."""
    return ("f32", 4) if kind.element == _F32 else (f"i{kind.element.width}", kind.element.width // 8)


@intrinsic
def load(typing: Any, place: Any, index: Any) -> tuple[Any, Codegen]:
    """Reads the LANES floats from `index` on."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        at = as_index(context, builder, signature.args[1], args[1])
        return builder.load(element_pointer(builder, args[0], at, FLOAT_VECTOR, 4), align=4)

    return FLOATS(types.int64, index), codegen


@intrinsic
def load_part(typing: Any, place: Any, index: Any, count: Any) -> tuple[Any, Codegen]:
    """Reads the `count` floats from `index` on, zeros above."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        at, size = (as_index(context, builder, signature.args[i], args[i]) for i in (1, 2))
        return masked_load(builder, args[0], at, first_lanes(builder, size), FLOAT_VECTOR)

    return FLOATS(types.int64, index, count), codegen


@intrinsic
def store(typing: Any, place: Any, index: Any, value: Any) -> tuple[Any, Codegen]:
    """Writes all lanes from `index` on."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        at = as_index(context, builder, signature.args[1], args[1])
        builder.store(args[2], element_pointer(builder, args[0], at, FLOAT_VECTOR, 4), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, index, FLOATS), codegen


@intrinsic
def store_part(typing: Any, place: Any, index: Any, value: Any, count: Any) -> tuple[Any, Codegen]:
    """Writes the first `count` lanes from `index` on."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        at, size = (as_index(context, builder, signature.args[i], args[i]) for i in (1, 3))
        masked_store(builder, args[0], at, first_lanes(builder, size), args[2])
        return context.get_dummy_value()

    return types.void(types.int64, index, FLOATS, count), codegen


@intrinsic
def load_bf16(typing: Any, place: Any, index: Any, count: Any) -> tuple[Any, Codegen]:
    """Reads the `count` BF16 numbers from `index` on, zeros above."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        at, size = (as_index(context, builder, signature.args[i], args[i]) for i in (1, 2))
        halves = masked_load(builder, args[0], at, first_lanes(builder, size), _HALVES)
        return builder.bitcast(builder.shl(builder.zext(halves, WORD_VECTOR), same_words(16)), FLOAT_VECTOR)

    return FLOATS(types.int64, index, count), codegen


@intrinsic
def store_bf16(typing: Any, place: Any, index: Any, value: Any, count: Any) -> tuple[Any, Codegen]:
    """Writes the first `count` lanes from `index` on, rounded half to even; NaN stays NaN."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        at, size = (as_index(context, builder, signature.args[i], args[i]) for i in (1, 3))
        value, bits = args[2], builder.bitcast(args[2], WORD_VECTOR)
        odd = builder.and_(builder.lshr(bits, same_words(16)), same_words(1))
        rounded = builder.lshr(builder.add(bits, builder.add(odd, same_words(0x7FFF))), same_words(16))
        number = builder.fcmp_ordered("==", value, value)
        halves = builder.trunc(builder.select(number, rounded, same_words(0x7FC0)), _HALVES)
        masked_store(builder, args[0], at, first_lanes(builder, size), halves)
        return context.get_dummy_value()

    return types.void(types.int64, index, FLOATS, count), codegen


@inlined
def load_number(place: int, index: int, count: int, is_bf16: int) -> Any:
    """Reads the `count` numbers from `index` on, of either precision."""
    return load_bf16(place, index, count) if is_bf16 else load_part(place, index, count)


@inlined
def store_number(place: int, index: int, value: Any, count: int, is_bf16: int) -> None:
    """Writes the first `count` lanes from `index` on, in either precision."""
    if is_bf16:
        store_bf16(place, index, value, count)
    else:
        store_part(place, index, value, count)


@intrinsic
def rectify_bf16(typing: Any, place: Any, gate: Any, index: Any, count: Any) -> tuple[Any, Codegen]:
    """Sets the `count` BF16 numbers from `index` on to 0 where those at `gate` are neither above 0 nor NaN; reads them.

    What stays is not rounded again.
    """

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        at, size = (as_index(context, builder, signature.args[i], args[i]) for i in (2, 3))
        lanes = first_lanes(builder, size)
        values, gates = (masked_load(builder, args[i], at, lanes, _HALVES) for i in (0, 1))
        none, infinity = (ir.Constant(_HALVES, [bits] * LANES) for bits in (0, -0x80))  # the negative one
        above = builder.icmp_signed(">", gates, none)
        kept = builder.select(builder.or_(above, builder.icmp_unsigned(">", gates, infinity)), values, none)
        masked_store(builder, args[0], at, lanes, kept)
        return builder.bitcast(builder.shl(builder.zext(kept, WORD_VECTOR), same_words(16)), FLOAT_VECTOR)

    return FLOATS(types.int64, types.int64, index, count), codegen


@intrinsic
def splat(typing: Any, value: Any) -> tuple[Any, Codegen]:
    """Makes a vector of one f32 in every lane."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return every_lane(builder, args[0])

    return FLOATS(types.float32), codegen


def _elementwise(instruction: str) -> Callable[..., Any]:
    """Makes an LLVM instruction on each lane of two vectors."""

    @intrinsic
    def operation(typing: Any, a: Any, b: Any) -> tuple[Any, Codegen]:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            return getattr(builder, instruction)(*args)

        return FLOATS(FLOATS, FLOATS), codegen

    return operation


add = _elementwise("fadd")
subtract = _elementwise("fsub")
multiply = _elementwise("fmul")  # rounded before anything is added to it
divide = _elementwise("fdiv")


@intrinsic
def multiply_add(typing: Any, a: Any, b: Any, c: Any) -> tuple[Any, Codegen]:
    """Computes a b + c with one rounding."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return call(builder, f"llvm.fma.v{LANES}f32", FLOAT_VECTOR, list(args))

    return FLOATS(FLOATS, FLOATS, FLOATS), codegen


@intrinsic
def round_clamp(typing: Any, value: Any, low: Any, high: Any) -> tuple[Any, Codegen]:
    """Rounds half to even, then keeps the result between f32 bounds; NaN stays NaN."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        value = call(builder, f"llvm.rint.v{LANES}f32", FLOAT_VECTOR, [args[0]])
        low, high = every_lane(builder, args[1]), every_lane(builder, args[2])
        value = builder.select(builder.fcmp_ordered("<", value, low), low, value)
        return builder.select(builder.fcmp_ordered(">", value, high), high, value)

    return FLOATS(FLOATS, types.float32, types.float32), codegen


@intrinsic
def where_positive(typing: Any, gate: Any, value: Any) -> tuple[Any, Codegen]:
    """Takes `value` where `gate` is above 0 or NaN, else 0."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_unordered(">", args[0], ZEROS), args[1], ZEROS)

    return FLOATS(FLOATS, FLOATS), codegen


@intrinsic
def total(typing: Any, value: Any) -> tuple[Any, Codegen]:
    """Sums all lanes, pairwise."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        value, width = args[0], LANES
        while width > 1:
            width //= 2
            halves = [ir.Constant(ir.VectorType(_I32, width), list(range(s, s + width))) for s in (0, width)]
            low, high = (builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), h) for h in halves)
            value = builder.fadd(low, high)
        return builder.extract_element(value, ir.Constant(_I32, 0))

    return types.float32(FLOATS), codegen


def _interleave(builder: ir.IRBuilder, a: Any, b: Any, first: int) -> Any:
    """Returns a[first], b[first], a[first + 1], b[first + 1], ..."""
    order = [first + lane // 2 + LANES * (lane % 2) for lane in range(LANES)]
    return builder.shuffle_vector(a, b, ir.Constant(WORD_VECTOR, order))


def transposed(builder: ir.IRBuilder, tile: list[Any]) -> list[Any]:
    """Generates the transpose of LANES vectors: each round is a perfect shuffle, log2(LANES) of them transpose."""
    for _ in range(LANES.bit_length() - 1):
        pairs = [(tile[i], tile[i + LANES // 2]) for i in range(LANES // 2)]
        tile = [_interleave(builder, a, b, first) for a, b in pairs for first in (0, LANES // 2)]
    return tile


@intrinsic
def transpose(
    typing: Any, source: Any, stride: Any, rows: Any, columns: Any, target: Any, target_stride: Any
) -> tuple[Any, Codegen]:
    """Writes target[c, r] = source[r, c] for r, c < LANES; zeros where r >= rows or c >= columns. Strides in floats."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        source, stride, rows, columns, target, target_stride = args
        nothing = ir.Constant(_I64, 0)
        tile = []
        for r in range(LANES):
            number = ir.Constant(_I64, r)
            count = builder.select(builder.icmp_signed("<", number, rows), columns, nothing)
            mask = first_lanes(builder, count)
            tile.append(masked_load(builder, source, builder.mul(number, stride), mask, FLOAT_VECTOR))
        for c, column in enumerate(transposed(builder, tile)):
            at = builder.mul(ir.Constant(_I64, c), target_stride)
            builder.store(column, element_pointer(builder, target, at, FLOAT_VECTOR, 4), align=4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), codegen


FOUR = 4
"""Registers of sums that are added to at a time: a multiply-add takes four cycles or more, and two begin in each."""


@inlined
def add_four(sums: Any, row: Any, g0: np.float32, g1: np.float32, g2: np.float32, g3: np.float32) -> Any:
    """Adds a multiple of `row` to each of four registers of sums."""
    s0, s1 = multiply_add(splat(g0), row, sums[0]), multiply_add(splat(g1), row, sums[1])
    return s0, s1, multiply_add(splat(g2), row, sums[2]), multiply_add(splat(g3), row, sums[3])


@inlined
def no_sums() -> Any:
    """Makes four registers of zeros."""
    zeros = splat(np.float32(0))
    return zeros, zeros, zeros, zeros
