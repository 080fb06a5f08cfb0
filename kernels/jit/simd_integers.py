"""Vectors of integers for numba kernels, beside `simd`, whose conventions hold here.

Bit patterns of floats, which order as magnitudes do; integer codes of 1, 2 or 4 bytes; the choice among the words of a
vector. Which lanes are chosen travels as an int64: bit 0 stands for the first lane.
"""

from typing import Any

import llvmlite.binding as llvm
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
_I8, _I16 = ir.IntType(8), ir.IntType(16)
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
def larger_unsigned(typing: Any, a: Any, b: Any) -> tuple[Any, Codegen]:
    """Takes the larger word of each lane, without a sign: negative ones are larger than any other."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return builder.select(builder.icmp_unsigned(">", *args), *args)

    return WORDS(WORDS, WORDS), codegen


@intrinsic
def largest_unsigned(typing: Any, words: Any) -> tuple[Any, Codegen]:
    """Returns the largest lane without a sign, int64."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        word = call(builder, f"llvm.vector.reduce.umax.v{LANES}i32", _I32, [args[0]])
        return builder.zext(word, ir.IntType(64))

    return types.int64(WORDS), codegen


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


_FEATURES = llvm.get_host_cpu_features()
HAS_BYTE_PRODUCTS = bool(
    _FEATURES.get("avx512vnni", False) and (LANES == _AVX512_LANES or _FEATURES.get("avx512vl", False))
)
"""Whether the processor multiplies bytes and sums them by fours in one instruction."""


def byte_products_at_once(builder: ir.IRBuilder, sums: Any, unsigned: Any, signed: Any) -> Any:
    """Generates sums + u0 s0 + u1 s1 + u2 s2 + u3 s3 of each word's bytes, by the instruction that does so."""
    return call(builder, f"llvm.x86.avx512.vpdpbusd.{32 * LANES}", WORD_VECTOR, [sums, unsigned, signed])


def byte_products_by_halves(builder: ir.IRBuilder, sums: Any, unsigned: Any, signed: Any) -> Any:
    """Generates the same for any processor, by bytes widened to 16 bits, of which no sum saturates."""
    halves = ir.VectorType(_I16, 2 * LANES)
    unsigned, signed = builder.bitcast(unsigned, halves), builder.bitcast(signed, halves)
    eight = ir.Constant(halves, [8] * (2 * LANES))
    low = builder.and_(unsigned, ir.Constant(halves, [255] * (2 * LANES)))
    high = builder.lshr(unsigned, eight)
    low_signed, high_signed = builder.ashr(builder.shl(signed, eight), eight), builder.ashr(signed, eight)
    for a, b in ((low, low_signed), (high, high_signed)):
        sums = builder.add(sums, _pairs_of_products(builder, a, b))
    return sums


def _pairs_of_products(builder: ir.IRBuilder, a: Any, b: Any) -> Any:
    """Generates a0 b0 + a1 b1 of each word's halves."""
    narrow, parts = 8, []
    for first in range(0, LANES, narrow):
        order = ir.Constant(ir.VectorType(_I32, 2 * narrow), list(range(2 * first, 2 * (first + narrow))))
        few = [builder.shuffle_vector(one, ir.Constant(one.type, ir.Undefined), order) for one in (a, b)]
        parts.append(call(builder, "llvm.x86.avx2.pmadd.wd", ir.VectorType(_I32, narrow), few))
    if len(parts) == 1:
        return parts[0]
    return builder.shuffle_vector(parts[0], parts[1], ir.Constant(WORD_VECTOR, list(range(LANES))))


byte_products = byte_products_at_once if HAS_BYTE_PRODUCTS else byte_products_by_halves


@intrinsic
def store_bytes(typing: Any, place: Any, index: Any, value: Any, added: Any) -> tuple[Any, Codegen]:
    """Writes LANES bytes from byte `index` on: each lane rounded half to even, plus `added`; NaN counts as 0."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        place, index, value, added = args
        added = every_lane(builder, builder.trunc(added, _I32))
        kind = ir.VectorType(_I8, LANES)
        words = builder.add(rounded_words(builder, value), added)
        builder.store(builder.trunc(words, kind), element_pointer(builder, place, index, kind, 1), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, FLOATS, types.int64), codegen


@intrinsic
def store_three_bytes(typing: Any, place: Any, index: Any, apart: Any, value: Any, added: Any) -> tuple[Any, Codegen]:
    """Writes the three bytes of each lane, rounded half to even, plus `added`, at most 2^24 - 1.

    The lowest bytes go to the LANES bytes from byte `index` on, the others `apart` and twice as far behind them.
    """

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        place, index, apart, value, added = args
        kind, most = ir.VectorType(_I8, LANES), same_words((1 << 24) - 1)
        words = builder.add(rounded_words(builder, value), every_lane(builder, builder.trunc(added, _I32)))
        words = builder.select(builder.icmp_signed("<", words, most), words, most)
        at = index
        for shift in (0, 8, 16):
            one = builder.trunc(builder.lshr(words, same_words(shift)), kind)
            builder.store(one, element_pointer(builder, place, at, kind, 1), align=1)
            at = builder.add(at, apart)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, FLOATS, types.int64), codegen


def rounded_words(builder: ir.IRBuilder, value: Any) -> Any:
    """Generates int32 of floats, half to even; NaN and what int32 does not hold become -2^31, whose low byte is 0."""
    if LANES == _AVX512_LANES:
        arguments = [value, same_words(0), ir.Constant(_BITS, -1), _I32(4)]
        return call(builder, "llvm.x86.avx512.mask.cvtps2dq.512", WORD_VECTOR, arguments)
    return call(builder, "llvm.x86.avx.cvt.ps2dq.256", WORD_VECTOR, [value])
