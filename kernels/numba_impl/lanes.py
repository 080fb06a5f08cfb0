"""Chooses among the words of a vector; beside `vector`, whose conventions hold here.

Which lanes are chosen travels as an int64: bit 0 stands for the first lane.
"""

from typing import Any

from llvmlite import ir
from numba.core import types

from .memory import intrinsic
from .vector import LANES, WORDS, Codegen, as_index, call, element_pointer, every_lane, first_lanes

_I1, _I32, _I64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)
_WORDS, _BITS = ir.VectorType(_I32, LANES), ir.IntType(LANES)
_WORD_BYTES = 4
_AVX512_LANES = 16


@intrinsic
def load_words(typing: Any, place: Any, index: Any, count: Any) -> tuple[Any, Codegen]:
    """The `count` int32 from `index` on, zeros above."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        at, size = (as_index(context, builder, signature.args[i], args[i]) for i in (1, 2))
        pointer, zeros = element_pointer(builder, args[0], at, _WORDS), ir.Constant(_WORDS, [0] * LANES)
        arguments = [pointer, ir.Constant(_I32, _WORD_BYTES), first_lanes(builder, size), zeros]
        return call(builder, f"llvm.masked.load.v{LANES}i32.p0", _WORDS, arguments)

    return WORDS(types.int64, index, count), codegen


@intrinsic
def numbers_from(typing: Any, first: Any) -> tuple[Any, Codegen]:
    """first, first + 1, ..."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        word = builder.trunc(as_index(context, builder, signature.args[0], args[0]), _I32)
        return builder.add(every_lane(builder, word), ir.Constant(_WORDS, list(range(LANES))))

    return WORDS(first), codegen


@intrinsic
def hashed_equal(
    typing: Any, words: Any, drop: Any, factor: Any, keep_from: Any, wanted: Any, count: Any
) -> tuple[Any, Codegen]:
    """Which of the first `count` lanes have ((word >> drop) * factor) >> keep_from == wanted, in 32 bits, unsigned."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        numbers = [as_index(context, builder, signature.args[i], args[i]) for i in range(1, 6)]
        drop, factor, keep_from, wanted = (every_lane(builder, builder.trunc(n, _I32)) for n in numbers[:4])
        value = builder.lshr(builder.mul(builder.lshr(args[0], drop), factor), keep_from)
        chosen = builder.and_(builder.icmp_unsigned("==", value, wanted), first_lanes(builder, numbers[4]))
        return builder.zext(builder.bitcast(chosen, _BITS), _I64)

    return types.int64(WORDS, drop, factor, keep_from, wanted, count), codegen


@intrinsic
def how_many(typing: Any, lanes: Any) -> tuple[Any, Codegen]:
    """The number of lanes chosen."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return call(builder, "llvm.ctpop.i64", _I64, [args[0]])

    return types.int64(types.int64), codegen


@intrinsic
def pack_at_once(typing: Any, place: Any, index: Any, words: Any, lanes: Any) -> tuple[Any, Codegen]:
    """`pack` with the instruction that AVX-512 has for it."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        at = as_index(context, builder, signature.args[1], args[1])
        chosen = builder.bitcast(builder.trunc(args[3], _BITS), ir.VectorType(_I1, LANES))
        zeros = ir.Constant(_WORDS, [0] * LANES)
        # Within registers: the form that writes to memory takes a hundred cycles on some processors.
        packed = call(builder, f"llvm.x86.avx512.mask.compress.v{LANES}i32", _WORDS, [args[2], zeros, chosen])
        builder.store(packed, element_pointer(builder, args[0], at, _WORDS), align=_WORD_BYTES)
        return context.get_dummy_value()

    return types.void(types.int64, index, WORDS, types.int64), codegen


@intrinsic
def pack_one_by_one(typing: Any, place: Any, index: Any, words: Any, lanes: Any) -> tuple[Any, Codegen]:
    """`pack` for any processor, without a branch."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        at = as_index(context, builder, signature.args[1], args[1])
        for lane in range(LANES):
            word = builder.extract_element(args[2], ir.Constant(_I32, lane))
            builder.store(word, element_pointer(builder, args[0], at, _I32), align=_WORD_BYTES)
            bit = builder.and_(builder.lshr(args[3], ir.Constant(_I64, lane)), ir.Constant(_I64, 1))
            at = builder.add(at, bit)
        return context.get_dummy_value()

    return types.void(types.int64, index, WORDS, types.int64), codegen


pack = pack_at_once if LANES == _AVX512_LANES else pack_one_by_one
"""Writes the chosen lanes one after another from `index` on; what lies behind them, up to LANES words, is lost."""
