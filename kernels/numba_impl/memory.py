"""Single numbers at an address: how kernels read and write arrays.

Arrays travel through the kernels as addresses (int64): numba counts the references of every array that a function
passes on, with an atomic operation each time, which took more than half of the time of an update. The caller keeps the
arrays alive. An atomic operation never makes a result depend on the order of the threads: a claimed item is the same
whoever works on it, and a maximum does not know in which order it was found.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic as numba_intrinsic

Codegen = Callable[[Any, ir.IRBuilder, Any, Any], Any]
intrinsic: Callable[[Callable[..., tuple[Any, Codegen]]], Callable[..., Any]] = numba_intrinsic

_I64 = ir.IntType(64)


def _pointer(context: Any, builder: ir.IRBuilder, signature: Any, args: Any, to: ir.Type, width: int) -> Any:
    """Pointer to element args[1] of what starts at args[0]."""
    index = context.cast(builder, args[1], signature.args[1], types.int64)
    bytes_in = builder.mul(index, ir.Constant(_I64, width))
    return builder.inttoptr(builder.add(args[0], bytes_in), to.as_pointer())


@intrinsic
def int_at(typing: Any, place: Any, index: Any) -> tuple[Any, Codegen]:
    """Element of an int32 array, as int64."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, signature, args, ir.IntType(32), 4)
        return builder.sext(builder.load(pointer, align=4), _I64)

    return types.int64(types.int64, index), codegen


@intrinsic
def long_at(typing: Any, place: Any, index: Any) -> tuple[Any, Codegen]:
    """Element of an int64 array."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return builder.load(_pointer(context, builder, signature, args, _I64, 8), align=8)

    return types.int64(types.int64, index), codegen


@intrinsic
def float_at(typing: Any, place: Any, index: Any) -> tuple[Any, Codegen]:
    """Element of an f32 array."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return builder.load(_pointer(context, builder, signature, args, ir.FloatType(), 4), align=4)

    return types.float32(types.int64, index), codegen


@intrinsic
def set_int(typing: Any, place: Any, index: Any, value: Any) -> tuple[Any, Codegen]:
    """Writes an element of an int32 array."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        word = context.cast(builder, args[2], signature.args[2], types.int32)
        builder.store(word, _pointer(context, builder, signature, args, ir.IntType(32), 4), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, index, value), codegen


@intrinsic
def set_long(typing: Any, place: Any, index: Any, value: Any) -> tuple[Any, Codegen]:
    """Writes an element of an int64 array."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        word = context.cast(builder, args[2], signature.args[2], types.int64)
        builder.store(word, _pointer(context, builder, signature, args, _I64, 8), align=8)
        return context.get_dummy_value()

    return types.void(types.int64, index, value), codegen


@intrinsic
def set_float(typing: Any, place: Any, index: Any, value: Any) -> tuple[Any, Codegen]:
    """Writes an element of an f32 array."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        builder.store(args[2], _pointer(context, builder, signature, args, ir.FloatType(), 4), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, index, types.float32), codegen


def _raised_by_one(ordering: str) -> Codegen:
    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], _I64.as_pointer())
        return builder.atomic_rmw("add", pointer, ir.Constant(_I64, 1), ordering)

    return codegen


@intrinsic
def claim(typing: Any, counter: Any) -> tuple[Any, Codegen]:
    """The value of an int64 counter before it is raised by one, atomically."""
    return types.int64(types.int64), _raised_by_one("monotonic")


@intrinsic
def arrive(typing: Any, counter: Any) -> tuple[Any, Codegen]:
    """As `claim`; and who comes later sees what those before had written when they came."""
    return types.int64(types.int64), _raised_by_one("acq_rel")


@intrinsic
def raise_int(typing: Any, place: Any, index: Any, value: Any) -> tuple[Any, Codegen]:
    """Raises an element of an int32 array to at least `value`, atomically."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        word = context.cast(builder, args[2], signature.args[2], types.int32)
        pointer = _pointer(context, builder, signature, args, ir.IntType(32), 4)
        builder.atomic_rmw("max", pointer, word, "monotonic")
        return context.get_dummy_value()

    return types.void(types.int64, index, value), codegen
