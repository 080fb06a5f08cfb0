"""Vectors of integers for numba kernels: bit patterns of floats, which order as magnitudes do, and integer codes.

Beside `vector`, whose conventions hold here.
"""

from typing import Any

from llvmlite import ir
from numba.core import types

from .vector import FLOATS, LANES, WORDS, Codegen, call, first_lanes, intrinsic

_I32, _I64, _F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
_FLOATS, _WORDS = ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES)


@intrinsic
def magnitude(typing: Any, value: Any) -> tuple[Any, Codegen]:
    """The bit patterns of |value|: they order as the magnitudes do, with NaN above infinity."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return builder.and_(builder.bitcast(args[0], _WORDS), ir.Constant(_WORDS, [0x7FFFFFFF] * LANES))

    return WORDS(FLOATS), codegen


@intrinsic
def no_words(typing: Any) -> tuple[Any, Codegen]:
    """Zeros."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return ir.Constant(_WORDS, [0] * LANES)

    return WORDS(), codegen


@intrinsic
def larger(typing: Any, a: Any, b: Any) -> tuple[Any, Codegen]:
    """The larger word of each lane."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return builder.select(builder.icmp_signed(">", *args), *args)

    return WORDS(WORDS, WORDS), codegen


@intrinsic
def largest(typing: Any, words: Any) -> tuple[Any, Codegen]:
    """The largest lane, int32."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return call(builder, f"llvm.vector.reduce.smax.v{LANES}i32", _I32, [args[0]])

    return types.int32(WORDS), codegen


@intrinsic
def as_float(typing: Any, bits: Any) -> tuple[Any, Codegen]:
    """The f32 with this int32 as its bit pattern."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], _F32)

    return types.float32(types.int32), codegen


@intrinsic
def store_codes(typing: Any, place: Any, index: Any, value: Any, count: Any, code_bytes: Any) -> tuple[Any, Codegen]:
    """Writes the first `count` lanes as int8 or int16 (code_bytes 1 or 2), which hold them; NaN becomes 0."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        place, index, value, count, code_bytes = args
        number = builder.select(builder.fcmp_ordered("==", value, value), value, ir.Constant(_FLOATS, [0.0] * LANES))
        words, mask = builder.fptosi(number, _WORDS), first_lanes(builder, count)
        is_byte = builder.icmp_signed("==", code_bytes, ir.Constant(_I64, 1))
        with builder.if_else(is_byte) as branches:
            for branch, width in zip(branches, (1, 2), strict=True):
                with branch:
                    kind = ir.VectorType(ir.IntType(8 * width), LANES)
                    at = builder.add(place, builder.mul(index, ir.Constant(_I64, width)))
                    pointer = builder.inttoptr(at, kind.as_pointer())
                    arguments = [builder.trunc(words, kind), pointer, ir.Constant(_I32, width), mask]
                    call(builder, f"llvm.masked.store.v{LANES}i{8 * width}.p0", ir.VoidType(), arguments)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, FLOATS, types.int64, types.int64), codegen
