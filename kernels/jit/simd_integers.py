"""Vectors of integers for numba kernels, beside `simd`, whose conventions hold here.

Bit patterns of floats, which order as magnitudes do; integer codes of 1, 2 or 4 bytes; the choice among the words of a
vector. Which lanes are chosen travels as an int64: bit 0 stands for the first lane.
"""

from typing import Any

from llvmlite import ir
from numba.core import types

from .memory import Codegen, as_index, call, element_pointer, intrinsic
from .simd import (
    FLOAT_VECTOR,
    FLOATS,
    LANES,
    WORD_VECTOR,
    WORDS,
    ZEROS,
    every_lane,
    first_lanes,
    masked_load,
    masked_store,
    same_words,
)

_I1, _I32, _I64, _F32 = ir.IntType(1), ir.IntType(32), ir.IntType(64), ir.FloatType()
_BITS = ir.IntType(LANES)
_AVX512_LANES = 16

FP32_CODE_BYTES = 4
"""Bytes of a code in an FP32 container."""


@intrinsic
def magnitude(typing: Any, value: Any) -> tuple[Any, Codegen]:
    """Returns the bit patterns of |value|: they order as the magnitudes do, with NaN above infinity."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return builder.and_(builder.bitcast(args[0], WORD_VECTOR), same_words(0x7FFFFFFF))

    return WORDS(FLOATS), codegen


@intrinsic
def no_words(typing: Any) -> tuple[Any, Codegen]:
    """Makes a vector of zeros."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return same_words(0)

    return WORDS(), codegen


@intrinsic
def larger(typing: Any, a: Any, b: Any) -> tuple[Any, Codegen]:
    """Takes the larger word of each lane."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return builder.select(builder.icmp_signed(">", *args), *args)

    return WORDS(WORDS, WORDS), codegen


@intrinsic
def largest(typing: Any, words: Any) -> tuple[Any, Codegen]:
    """Returns the largest lane, int32."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return call(builder, f"llvm.vector.reduce.smax.v{LANES}i32", _I32, [args[0]])

    return types.int32(WORDS), codegen


@intrinsic
def as_float(typing: Any, bits: Any) -> tuple[Any, Codegen]:
    """Returns the f32 with this int32 as its bit pattern."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], _F32)

    return types.float32(types.int32), codegen


@intrinsic
def store_codes(typing: Any, place: Any, index: Any, value: Any, count: Any, code_bytes: Any) -> tuple[Any, Codegen]:
    """Writes the first `count` lanes as int8 or int16 (code_bytes 1 or 2), which hold them; NaN becomes 0."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        place, index, value, count, code_bytes = args
        number = builder.select(builder.fcmp_ordered("==", value, value), value, ZEROS)
        words, mask = builder.fptosi(number, WORD_VECTOR), first_lanes(builder, count)
        is_byte = builder.icmp_signed("==", code_bytes, ir.Constant(_I64, 1))
        with builder.if_else(is_byte) as branches:
            for branch, width in zip(branches, (1, 2), strict=True):
                with branch:
                    kind = ir.VectorType(ir.IntType(8 * width), LANES)
                    masked_store(builder, place, index, mask, builder.trunc(words, kind))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, FLOATS, types.int64, types.int64), codegen


@intrinsic
def load_codes(typing: Any, place: Any, index: Any, count: Any, code_bytes: Any) -> tuple[Any, Codegen]:
    """Reads the `count` codes of 1, 2 or 4 (FP32) bytes from element `index` on as int32, zeros above."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        place, index, count, code_bytes = args
        mask = first_lanes(builder, count)
        blocks = {width: builder.append_basic_block(f"code_bytes_{width}") for width in (1, 2, FP32_CODE_BYTES)}
        done = builder.append_basic_block("loaded")
        switch = builder.switch(code_bytes, blocks[FP32_CODE_BYTES])
        loaded = []
        for width, block in blocks.items():
            if width != FP32_CODE_BYTES:
                switch.add_case(ir.Constant(_I64, width), block)
            with builder.goto_block(block):
                loaded.append((_masked_codes(builder, place, index, mask, width), block))
                builder.branch(done)
        builder.position_at_end(done)
        result = builder.phi(WORD_VECTOR)
        for words, block in loaded:
            result.add_incoming(words, block)
        return result

    return WORDS(types.int64, types.int64, types.int64, types.int64), codegen


def _masked_codes(builder: ir.IRBuilder, place: Any, index: Any, mask: Any, width: int) -> Any:
    if width == FP32_CODE_BYTES:
        return builder.fptosi(masked_load(builder, place, index, mask, FLOAT_VECTOR), WORD_VECTOR)
    codes = masked_load(builder, place, index, mask, ir.VectorType(ir.IntType(8 * width), LANES))
    return builder.sext(codes, WORD_VECTOR)


@intrinsic
def add_words(typing: Any, a: Any, b: Any) -> tuple[Any, Codegen]:
    """Computes a + b in int32."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return builder.add(*args)

    return WORDS(WORDS, WORDS), codegen


@intrinsic
def to_floats(typing: Any, words: Any) -> tuple[Any, Codegen]:
    """Returns the nearest f32 of each int32."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return builder.sitofp(args[0], FLOAT_VECTOR)

    return FLOATS(WORDS), codegen


@intrinsic
def load_words(typing: Any, place: Any, index: Any, count: Any) -> tuple[Any, Codegen]:
    """Reads the `count` int32 from `index` on, zeros above."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        at, size = (as_index(context, builder, signature.args[i], args[i]) for i in (1, 2))
        return masked_load(builder, args[0], at, first_lanes(builder, size), WORD_VECTOR)

    return WORDS(types.int64, index, count), codegen


@intrinsic
def numbers_from(typing: Any, first: Any) -> tuple[Any, Codegen]:
    """Makes the int32 first, first + 1, ... of all lanes."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        word = builder.trunc(as_index(context, builder, signature.args[0], args[0]), _I32)
        return builder.add(every_lane(builder, word), ir.Constant(WORD_VECTOR, list(range(LANES))))

    return WORDS(first), codegen


@intrinsic
def hashed_equal(
    typing: Any, words: Any, drop: Any, factor: Any, keep_from: Any, wanted: Any, count: Any
) -> tuple[Any, Codegen]:
    """Chooses of `count` lanes those with ((word >> drop) * factor) >> keep_from == wanted, in unsigned int32."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        numbers = [as_index(context, builder, signature.args[i], args[i]) for i in range(1, 6)]
        drop, factor, keep_from, wanted = (every_lane(builder, builder.trunc(n, _I32)) for n in numbers[:4])
        value = builder.lshr(builder.mul(builder.lshr(args[0], drop), factor), keep_from)
        chosen = builder.and_(builder.icmp_unsigned("==", value, wanted), first_lanes(builder, numbers[4]))
        return builder.zext(builder.bitcast(chosen, _BITS), _I64)

    return types.int64(WORDS, drop, factor, keep_from, wanted, count), codegen


@intrinsic
def how_many(typing: Any, lanes: Any) -> tuple[Any, Codegen]:
    """Counts the lanes chosen."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return call(builder, "llvm.ctpop.i64", _I64, [args[0]])

    return types.int64(types.int64), codegen


@intrinsic
def pack_at_once(typing: Any, place: Any, index: Any, words: Any, lanes: Any) -> tuple[Any, Codegen]:
    """Does `pack` with the instruction that AVX-512 has for it."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        at = as_index(context, builder, signature.args[1], args[1])
        chosen = builder.bitcast(builder.trunc(args[3], _BITS), ir.VectorType(_I1, LANES))
        zeros = same_words(0)
        # Within registers: the form that writes to memory takes a hundred cycles on some processors.
        packed = call(builder, f"llvm.x86.avx512.mask.compress.v{LANES}i32", WORD_VECTOR, [args[2], zeros, chosen])
        builder.store(packed, element_pointer(builder, args[0], at, WORD_VECTOR, 4), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, index, WORDS, types.int64), codegen


@intrinsic
def pack_one_by_one(typing: Any, place: Any, index: Any, words: Any, lanes: Any) -> tuple[Any, Codegen]:
    """Does `pack` for any processor, without a branch."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        at = as_index(context, builder, signature.args[1], args[1])
        for lane in range(LANES):
            word = builder.extract_element(args[2], ir.Constant(_I32, lane))
            builder.store(word, element_pointer(builder, args[0], at, _I32, 4), align=4)
            bit = builder.and_(builder.lshr(args[3], ir.Constant(_I64, lane)), ir.Constant(_I64, 1))
            at = builder.add(at, bit)
        return context.get_dummy_value()

    return types.void(types.int64, index, WORDS, types.int64), codegen


pack = pack_at_once if LANES == _AVX512_LANES else pack_one_by_one
"""Writes the chosen lanes one after another from `index` on; what lies behind them, up to LANES words, is lost."""
