"""Products of BF16 pairs for numba kernels, on processors that have them: beside `simd`, whose conventions hold here.

A word (int32) holds two BF16 numbers, the first in its low half. The processor sums their products in FP32, rounds each
sum to the nearest, and takes numbers below 1e-38 for 0; so does what narrows here.
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
    every_lane,
    first_lanes,
    masked_load,
    masked_store,
    same_words,
)

HAS_PAIR_PRODUCTS = LANES == 16 and bool(llvm.get_host_cpu_features().get("avx512bf16", False))
"""True if the processor multiplies pairs of BF16 numbers."""

_I16, _I32 = ir.IntType(16), ir.IntType(32)
_HALVES = ir.VectorType(_I16, LANES)


@intrinsic
def add_pair_products(typing: Any, sums: Any, a: Any, b: Any) -> tuple[Any, Codegen]:
    """Returns sums + a1 b1 + a0 b0 of each word's halves."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return call(builder, "llvm.x86.avx512bf16.dpbf16ps.512", FLOAT_VECTOR, list(args))

    return FLOATS(FLOATS, WORDS, WORDS), codegen


@intrinsic
def every_pair(typing: Any, place: Any, half: Any) -> tuple[Any, Codegen]:
    """Reads the BF16 numbers `half` and `half` + 1 into every lane."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        at = as_index(context, builder, signature.args[1], args[1])
        return every_lane(builder, builder.load(element_pointer(builder, args[0], at, _I32, 2), align=2))

    return WORDS(types.int64, half), codegen


@intrinsic
def every_word(typing: Any, word: Any) -> tuple[Any, Codegen]:
    """Returns one int32 in every lane."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        word = as_index(context, builder, signature.args[0], args[0])
        return every_lane(builder, builder.trunc(word, _I32))

    return WORDS(word), codegen


@intrinsic
def whole_words(typing: Any, place: Any, index: Any) -> tuple[Any, Codegen]:
    """Reads the LANES int32 from `index` on."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        at = as_index(context, builder, signature.args[1], args[1])
        return builder.load(element_pointer(builder, args[0], at, WORD_VECTOR, 4), align=4)

    return WORDS(types.int64, index), codegen


@intrinsic
def store_pairs(
    typing: Any, place: Any, index: Any, source: Any, first: Any, count: Any, second: Any, count_of_second: Any
) -> tuple[Any, Codegen]:
    """Writes words from `index` on: of the BF16 numbers at `source` those from `first` on low, from `second` on high.

    Only `count` and `count_of_second` of them are read, zeros stand in for the others; all lanes are written.
    """

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        place, index, source, first, count, second, count_of_second = args
        low, high = (
            builder.zext(masked_load(builder, source, at, first_lanes(builder, size), _HALVES), WORD_VECTOR)
            for at, size in ((first, count), (second, count_of_second))
        )
        words = builder.or_(low, builder.shl(high, same_words(16)))
        builder.store(words, element_pointer(builder, place, index, WORD_VECTOR, 4), align=4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), codegen


@intrinsic
def narrow(typing: Any, place: Any, index: Any, value: Any, count: Any) -> tuple[Any, Codegen]:
    """Writes the first `count` lanes from `index` on in BF16, rounded half to even by the processor."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        at, size = (as_index(context, builder, signature.args[i], args[i]) for i in (1, 3))
        halves = call(builder, "llvm.x86.avx512bf16.cvtneps2bf16.512", _HALVES, [args[2]])
        masked_store(builder, args[0], at, first_lanes(builder, size), halves)
        return context.get_dummy_value()

    return types.void(types.int64, index, FLOATS, count), codegen
