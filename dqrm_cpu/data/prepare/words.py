"""Eight bytes of text at a time: loads at any address, and the few bit tricks that parsers are made of.

Text is named by the address of its first byte and an index. Loads reach up to 7 bytes beyond the byte asked for: the
caller pads its buffers.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic as numba_intrinsic

Codegen = Callable[[Any, ir.IRBuilder, Any, Any], Any]
intrinsic: Callable[[Callable[..., tuple[Any, Codegen]]], Callable[..., Any]] = numba_intrinsic

PADDING = 64
"""Bytes that every buffer of text has beyond its end."""

_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)


def _call(builder: ir.IRBuilder, name: str, result: ir.Type, args: list[Any]) -> Any:
    kind = ir.FunctionType(result, [arg.type for arg in args])
    found: Any = cgutils.get_or_insert_function
    return builder.call(found(builder.module, kind, name), args)


@intrinsic
def byte_at(typing: Any, text: Any, index: Any) -> tuple[Any, Codegen]:
    """One byte, as int64."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(builder.add(*args), _I8.as_pointer())
        return builder.zext(builder.load(pointer, align=1), _I64)

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def word_at(typing: Any, text: Any, index: Any) -> tuple[Any, Codegen]:
    """Eight bytes as uint64, the first one lowest."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(builder.add(*args), _I64.as_pointer())
        return builder.load(pointer, align=1)

    return types.uint64(types.int64, types.int64), codegen


@intrinsic
def trailing_zeros(typing: Any, word: Any) -> tuple[Any, Codegen]:
    """Zero bits below the lowest one bit, as int64; 64 for 0."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return _call(builder, "llvm.cttz.i64", _I64, [args[0], ir.Constant(ir.IntType(1), 0)])

    return types.int64(types.uint64), codegen


@intrinsic
def prefetch(typing: Any, place: Any, index: Any) -> tuple[Any, Codegen]:
    """Asks for the cache line `index` bytes behind the address `place`; any index is safe."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(builder.add(*args), _I8.as_pointer())
        read, keep, data = (ir.Constant(_I32, value) for value in (0, 3, 1))
        _call(builder, "llvm.prefetch.p0", ir.VoidType(), [pointer, read, keep, data])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


def _element(builder: ir.IRBuilder, place: Any, index: Any, to: ir.Type, width: int) -> Any:
    offset = builder.mul(index, ir.Constant(_I64, width))
    return builder.inttoptr(builder.add(place, offset), to.as_pointer())


@intrinsic
def long_at(typing: Any, place: Any, index: Any) -> tuple[Any, Codegen]:
    """Element of an int64 array at an address."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return builder.load(_element(builder, args[0], args[1], _I64, 8), align=8)

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def add_long(typing: Any, place: Any, index: Any, value: Any) -> tuple[Any, Codegen]:
    """Adds to an element of an int64 array."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        pointer = _element(builder, args[0], args[1], _I64, 8)
        builder.store(builder.add(builder.load(pointer, align=8), args[2]), pointer, align=8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic
def float_at(typing: Any, place: Any, index: Any) -> tuple[Any, Codegen]:
    """Element of an f32 array."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return builder.load(_element(builder, args[0], args[1], ir.FloatType(), 4), align=4)

    return types.float32(types.int64, types.int64), codegen


@intrinsic
def set_float(typing: Any, place: Any, index: Any, value: Any) -> tuple[Any, Codegen]:
    """Writes an element of an f32 array."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        builder.store(args[2], _element(builder, args[0], args[1], ir.FloatType(), 4), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float32), codegen


@intrinsic
def set_word(typing: Any, place: Any, index: Any, value: Any) -> tuple[Any, Codegen]:
    """Writes an element of a uint32 array: the lower half of a uint64."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        word = builder.trunc(args[2], _I32)
        builder.store(word, _element(builder, args[0], args[1], _I32, 4), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.uint64), codegen


@intrinsic
def set_long_word(typing: Any, place: Any, index: Any, value: Any) -> tuple[Any, Codegen]:
    """Writes an element of a uint64 array."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        builder.store(args[2], _element(builder, args[0], args[1], _I64, 8), align=8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.uint64), codegen
