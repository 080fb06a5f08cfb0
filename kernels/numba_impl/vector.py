"""LLVM vectors of floats for numba kernels: its own loops are several times slower than explicit vectors here.

A `Floats` holds LANES f32, a `Words` as many int32. Memory is named by the address of an array's first element (int64)
and an element index; nothing is bounds-checked. `*_part` touch only the first `count` lanes, so that any dimension
works: lanes beyond it read as 0 and are never written.
"""

from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import models
from numba.extending import intrinsic as numba_intrinsic
from numba.extending import register_model

LANES = 16 if llvm.get_host_cpu_features().get("avx512f", False) else 8

_I1, _I32, _I64, _F32 = ir.IntType(1), ir.IntType(32), ir.IntType(64), ir.FloatType()
_FLOATS, _WORDS = ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES)
_FLOAT_BYTES = 4
Codegen = Callable[[Any, ir.IRBuilder, Any, Any], Any]
intrinsic: Callable[[Callable[..., tuple[Any, Codegen]]], Callable[..., Any]] = numba_intrinsic


class _VectorType(types.Type):
    """A numba type whose values live in one vector register."""


FLOATS, WORDS = _VectorType("Floats"), _VectorType("Words")


@register_model(_VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: _VectorType) -> None:
        super().__init__(manager, kind, _FLOATS if kind == FLOATS else _WORDS)


def call(builder: ir.IRBuilder, name: str, result: ir.Type, args: list[Any]) -> Any:
    """Generates a call of an LLVM intrinsic."""
    kind = ir.FunctionType(result, [arg.type for arg in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


def element_pointer(builder: ir.IRBuilder, place: Any, index: Any, to: ir.Type, width: int = _FLOAT_BYTES) -> Any:
    """Address of an element of `width` bytes, as a pointer to `to`."""
    bytes_in = builder.mul(index, ir.Constant(_I64, width))
    return builder.inttoptr(builder.add(place, bytes_in), to.as_pointer())


def as_index(context: Any, builder: ir.IRBuilder, kind: Any, value: Any) -> Any:
    """An integer of any numba type as int64."""
    return context.cast(builder, value, kind, types.int64)


def every_lane(builder: ir.IRBuilder, value: Any) -> Any:
    """Generates a vector of LANES copies."""
    kind = ir.VectorType(value.type, LANES)
    single = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(single, ir.Constant(kind, ir.Undefined), ir.Constant(_WORDS, [0] * LANES))


def first_lanes(builder: ir.IRBuilder, count: Any) -> Any:
    """The first `count` lanes; all of them for a count beyond LANES."""
    limit = builder.trunc(count, _I32)
    return builder.icmp_signed("<", ir.Constant(_WORDS, list(range(LANES))), every_lane(builder, limit))


@intrinsic
def load(typing: Any, place: Any, index: Any) -> tuple[Any, Codegen]:
    """The LANES floats from `index` on."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        at = as_index(context, builder, signature.args[1], args[1])
        return builder.load(element_pointer(builder, args[0], at, _FLOATS), align=_FLOAT_BYTES)

    return FLOATS(types.int64, index), codegen


@intrinsic
def load_part(typing: Any, place: Any, index: Any, count: Any) -> tuple[Any, Codegen]:
    """The `count` floats from `index` on, zeros above."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        at = as_index(context, builder, signature.args[1], args[1])
        mask = first_lanes(builder, as_index(context, builder, signature.args[2], args[2]))
        pointer = element_pointer(builder, args[0], at, _FLOATS)
        zeros = ir.Constant(_FLOATS, [0.0] * LANES)
        name = f"llvm.masked.load.v{LANES}f32.p0"
        return call(builder, name, _FLOATS, [pointer, ir.Constant(_I32, _FLOAT_BYTES), mask, zeros])

    return FLOATS(types.int64, index, count), codegen


@intrinsic
def store(typing: Any, place: Any, index: Any, value: Any) -> tuple[Any, Codegen]:
    """Writes all lanes from `index` on."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        at = as_index(context, builder, signature.args[1], args[1])
        pointer = element_pointer(builder, args[0], at, _FLOATS)
        builder.store(args[2], pointer, align=_FLOAT_BYTES)
        return context.get_dummy_value()

    return types.void(types.int64, index, FLOATS), codegen


@intrinsic
def store_part(typing: Any, place: Any, index: Any, value: Any, count: Any) -> tuple[Any, Codegen]:
    """Writes the first `count` lanes from `index` on."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        at = as_index(context, builder, signature.args[1], args[1])
        mask = first_lanes(builder, as_index(context, builder, signature.args[3], args[3]))
        pointer = element_pointer(builder, args[0], at, _FLOATS)
        name = f"llvm.masked.store.v{LANES}f32.p0"
        call(builder, name, ir.VoidType(), [args[2], pointer, ir.Constant(_I32, _FLOAT_BYTES), mask])
        return context.get_dummy_value()

    return types.void(types.int64, index, FLOATS, count), codegen


@intrinsic
def splat(typing: Any, value: Any) -> tuple[Any, Codegen]:
    """One f32 in every lane."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return every_lane(builder, args[0])

    return FLOATS(types.float32), codegen


def _elementwise(instruction: str) -> Callable[..., Any]:
    """An LLVM instruction on each lane of two vectors."""

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
    """a b + c with one rounding"""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return call(builder, f"llvm.fma.v{LANES}f32", _FLOATS, list(args))

    return FLOATS(FLOATS, FLOATS, FLOATS), codegen


@intrinsic
def round_clamp(typing: Any, value: Any, low: Any, high: Any) -> tuple[Any, Codegen]:
    """Rounded half to even, then kept between f32 bounds; NaN stays NaN."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        value = call(builder, f"llvm.rint.v{LANES}f32", _FLOATS, [args[0]])
        low, high = every_lane(builder, args[1]), every_lane(builder, args[2])
        value = builder.select(builder.fcmp_ordered("<", value, low), low, value)
        return builder.select(builder.fcmp_ordered(">", value, high), high, value)

    return FLOATS(FLOATS, types.float32, types.float32), codegen


@intrinsic
def where_positive(typing: Any, gate: Any, value: Any) -> tuple[Any, Codegen]:
    """`value` where `gate` is above 0 or NaN, else 0."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        zeros = ir.Constant(_FLOATS, [0.0] * LANES)
        return builder.select(builder.fcmp_unordered(">", args[0], zeros), args[1], zeros)

    return FLOATS(FLOATS, FLOATS), codegen


@intrinsic
def total(typing: Any, value: Any) -> tuple[Any, Codegen]:
    """The sum of all lanes, pairwise."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        value, width = args[0], LANES
        while width > 1:
            width //= 2
            halves = [ir.Constant(ir.VectorType(_I32, width), list(range(s, s + width))) for s in (0, width)]
            low, high = (builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), h) for h in halves)
            value = builder.fadd(low, high)
        return builder.extract_element(value, ir.Constant(_I32, 0))

    return types.float32(FLOATS), codegen


@intrinsic
def prefetch(typing: Any, place: Any, index: Any) -> tuple[Any, Codegen]:
    """Asks for the cache line of element `index`; any index is safe."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        at = as_index(context, builder, signature.args[1], args[1])
        pointer = element_pointer(builder, args[0], at, ir.IntType(8))
        read, keep, data = (ir.Constant(_I32, value) for value in (0, 3, 1))
        call(builder, "llvm.prefetch.p0", ir.VoidType(), [pointer, read, keep, data])
        return context.get_dummy_value()

    return types.void(types.int64, index), codegen


def _interleave(builder: ir.IRBuilder, a: Any, b: Any, first: int) -> Any:
    """a[first], b[first], a[first + 1], b[first + 1], ..."""
    order = [first + lane // 2 + LANES * (lane % 2) for lane in range(LANES)]
    return builder.shuffle_vector(a, b, ir.Constant(_WORDS, order))


@intrinsic
def transpose(
    typing: Any, source: Any, stride: Any, rows: Any, columns: Any, target: Any, target_stride: Any
) -> tuple[Any, Codegen]:
    """target[c, r] = source[r, c] for r, c < LANES; zeros where r >= rows or c >= columns. Strides in floats."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        source, stride, rows, columns, target, target_stride = args
        nothing = ir.Constant(_I64, 0)
        zeros = ir.Constant(_FLOATS, [0.0] * LANES)
        tile = []
        for r in range(LANES):
            number = ir.Constant(_I64, r)
            count = builder.select(builder.icmp_signed("<", number, rows), columns, nothing)
            pointer = element_pointer(builder, source, builder.mul(number, stride), _FLOATS)
            arguments = [pointer, ir.Constant(_I32, _FLOAT_BYTES), first_lanes(builder, count), zeros]
            tile.append(call(builder, f"llvm.masked.load.v{LANES}f32.p0", _FLOATS, arguments))
        # Each round is a perfect shuffle of the tile; log2(LANES) of them transpose it.
        for _ in range(LANES.bit_length() - 1):
            pairs = [(tile[i], tile[i + LANES // 2]) for i in range(LANES // 2)]
            tile = [_interleave(builder, a, b, first) for a, b in pairs for first in (0, LANES // 2)]
        for c, column in enumerate(tile):
            at = builder.mul(ir.Constant(_I64, c), target_stride)
            builder.store(column, element_pointer(builder, target, at, _FLOATS), align=_FLOAT_BYTES)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), codegen
