"""BF16 numbers in memory, FP32 numbers in registers; beside `vector`, whose conventions hold here."""

from typing import Any

from llvmlite import ir
from numba.core import types

from .compiled import inlined
from .memory import intrinsic
from .vector import FLOATS, LANES, Codegen, as_index, call, element_pointer, first_lanes, load_part, store_part

_I16, _I32, _I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
_HALVES, _WORDS = ir.VectorType(_I16, LANES), ir.VectorType(_I32, LANES)
_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_HALF_BYTES = 2


def _words(value: int) -> Any:
    return ir.Constant(_WORDS, [value] * LANES)


@intrinsic
def load_bf16(typing: Any, place: Any, index: Any, count: Any) -> tuple[Any, Codegen]:
    """The `count` BF16 numbers from `index` on, zeros above."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        at, size = (as_index(context, builder, signature.args[i], args[i]) for i in (1, 2))
        pointer, zeros = element_pointer(builder, args[0], at, _HALVES, _HALF_BYTES), ir.Constant(_HALVES, [0] * LANES)
        arguments = [pointer, ir.Constant(_I32, _HALF_BYTES), first_lanes(builder, size), zeros]
        halves = call(builder, f"llvm.masked.load.v{LANES}i16.p0", _HALVES, arguments)
        return builder.bitcast(builder.shl(builder.zext(halves, _WORDS), _words(16)), _FLOATS)

    return FLOATS(types.int64, index, count), codegen


@intrinsic
def store_bf16(typing: Any, place: Any, index: Any, value: Any, count: Any) -> tuple[Any, Codegen]:
    """Writes the first `count` lanes from `index` on, rounded half to even; NaN stays NaN."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        at, size = (as_index(context, builder, signature.args[i], args[i]) for i in (1, 3))
        value, bits = args[2], builder.bitcast(args[2], _WORDS)
        odd = builder.and_(builder.lshr(bits, _words(16)), _words(1))
        rounded = builder.lshr(builder.add(bits, builder.add(odd, _words(0x7FFF))), _words(16))
        number = builder.fcmp_ordered("==", value, value)
        halves = builder.trunc(builder.select(number, rounded, _words(0x7FC0)), _HALVES)
        pointer, width = element_pointer(builder, args[0], at, _HALVES, _HALF_BYTES), ir.Constant(_I32, _HALF_BYTES)
        arguments = [halves, pointer, width, first_lanes(builder, size)]
        call(builder, f"llvm.masked.store.v{LANES}i16.p0", ir.VoidType(), arguments)
        return context.get_dummy_value()

    return types.void(types.int64, index, FLOATS, count), codegen


@inlined
def load_number(place: int, index: int, count: int, is_bf16: int) -> Any:
    """The `count` numbers from `index` on, of either precision."""
    return load_bf16(place, index, count) if is_bf16 else load_part(place, index, count)


@inlined
def store_number(place: int, index: int, value: Any, count: int, is_bf16: int) -> None:
    """Writes the first `count` lanes from `index` on, in either precision."""
    if is_bf16:
        store_bf16(place, index, value, count)
    else:
        store_part(place, index, value, count)
