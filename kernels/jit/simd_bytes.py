"""Bytes of four rows side by side in the words of a vector, beside `simd_integers`, and rounding by chance.

The instruction that multiplies bytes sums four products: those of four rows that are summed must be neighbours.
"""

from typing import Any

from llvmlite import ir
from numba.core import types

from .memory import Codegen, call, element_pointer, intrinsic
from .simd import FLOAT_VECTOR, FLOATS, LANES, WORD_VECTOR, WORDS, first_lanes, masked_load, masked_store, same_words
from .simd_integers import rounded_words

_I8, _I64 = ir.IntType(8), ir.IntType(64)

CHANCE_BITS = 16
"""The bits of a chance of `add_chance`: a random word holds two."""


@intrinsic
def interleave_bytes(typing: Any, source: Any, stride: Any, target: Any) -> tuple[Any, Codegen]:
    """Writes LANES words: bytes from the same place of four rows `stride` bytes apart, the first row lowest."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        source, stride, target = args
        kind = ir.VectorType(_I8, LANES)
        rows = []
        for row in range(4):
            at = builder.add(source, builder.mul(stride, _I64(row)))
            read = builder.load(element_pointer(builder, at, _I64(0), kind, 1), align=1)
            rows.append(builder.zext(read, WORD_VECTOR))
        _store_joined(builder, target, rows)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), codegen


@intrinsic
def store_four_bytes(typing: Any, target: Any, a: Any, b: Any, c: Any, d: Any) -> tuple[Any, Codegen]:
    """Writes LANES words, each of the codes in the same lane of four vectors, the first lowest; NaN counts as 0."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        low_byte = same_words(255)
        _store_joined(builder, args[0], [builder.and_(rounded_words(builder, v), low_byte) for v in args[1:]])
        return context.get_dummy_value()

    return types.void(types.int64, FLOATS, FLOATS, FLOATS, FLOATS), codegen


def _store_joined(builder: ir.IRBuilder, target: Any, rows: list[Any]) -> None:
    """Generates the store of words made of the lowest bytes of four."""
    joined = rows[0]
    for number, words in enumerate(rows[1:], start=1):
        joined = builder.or_(joined, builder.shl(words, same_words(8 * number)))
    builder.store(joined, element_pointer(builder, target, _I64(0), WORD_VECTOR, 4), align=4)


@intrinsic
def add_chance(typing: Any, value: Any, words: Any, is_upper: Any) -> tuple[Any, Codegen]:
    """Computes floor(value + u), u = 16 bits of a word / 2^16: the upper ones, or the lower; NaN stays NaN."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        value, words, is_upper = args
        chosen = builder.icmp_signed("!=", is_upper, ir.Constant(is_upper.type, 0))
        upper = builder.lshr(words, same_words(CHANCE_BITS))
        lower = builder.and_(words, same_words((1 << CHANCE_BITS) - 1))
        chance = builder.sitofp(builder.select(chosen, upper, lower), FLOAT_VECTOR)
        chance = builder.fmul(chance, ir.Constant(FLOAT_VECTOR, [2.0**-CHANCE_BITS] * LANES))
        return call(builder, f"llvm.floor.v{LANES}f32", FLOAT_VECTOR, [builder.fadd(value, chance)])

    return FLOATS(FLOATS, WORDS, types.int64), codegen


@intrinsic
def raise_magnitudes(typing: Any, place: Any, index: Any, value: Any, count: Any) -> tuple[Any, Codegen]:
    """Raises the first `count` of the numbers from `index` on, none below 0, to at least |value|; NaN is above all."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        place, index, value, count = args
        mask = first_lanes(builder, count)
        before = masked_load(builder, place, index, mask, WORD_VECTOR)
        words = builder.and_(builder.bitcast(value, WORD_VECTOR), same_words(0x7FFFFFFF))
        raised = builder.select(builder.icmp_signed(">", words, before), words, before)
        masked_store(builder, place, index, mask, raised)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, FLOATS, types.int64), codegen
