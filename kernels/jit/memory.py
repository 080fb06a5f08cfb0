"""Single numbers at an address: how kernels read and write arrays.

Arrays travel through the kernels as addresses (int64): numba counts the references of every array that a function
passes on, with an atomic operation each time, which took more than half of the time of an update. The caller keeps the
arrays alive. An atomic operation never makes a result depend on the order of the threads: a claimed item is the same
whoever works on it, and a maximum does not know in which order it was found.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import carray as numba_carray  # type: ignore[attr-defined]
from numba.core import cgutils, types
from numba.extending import intrinsic as numba_intrinsic

Codegen = Callable[[Any, ir.IRBuilder, Any, Any], Any]
Intrinsic = Callable[..., Any]
intrinsic: Callable[[Callable[..., tuple[Any, Codegen]]], Intrinsic] = numba_intrinsic
carray: Intrinsic = numba_carray

_I8, _I32, _I64, _F32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()


FLOATS_PER_LINE = 16
"""As many f32 as a line of the cache holds: what threads write for themselves lies in lines of their own."""


def call(builder: ir.IRBuilder, name: str, result: ir.Type, args: list[Any]) -> Any:
    """Generates a call of an LLVM intrinsic."""
    kind = ir.FunctionType(result, [arg.type for arg in args])
    get_function: Any = cgutils.get_or_insert_function
    return builder.call(get_function(builder.module, kind, name), args)


def element_pointer(builder: ir.IRBuilder, place: Any, index: Any, to: ir.Type, width: int) -> Any:
    """Generates the address of an element of `width` bytes, as a pointer to `to`."""
    bytes_in = builder.mul(index, ir.Constant(_I64, width))
    return builder.inttoptr(builder.add(place, bytes_in), to.as_pointer())


def as_index(context: Any, builder: ir.IRBuilder, kind: Any, value: Any) -> Any:
    """Generates an int64 from an integer of any numba type."""
    return context.cast(builder, value, kind, types.int64)


def _indexed(context: Any, builder: ir.IRBuilder, signature: Any, args: Any, to: ir.Type, width: int) -> Any:
    """Generates a pointer to element args[1] of what starts at args[0]."""
    return element_pointer(builder, args[0], as_index(context, builder, signature.args[1], args[1]), to, width)


def _reading(element: ir.Type, width: int, result: Any, extend: str | None = None) -> Intrinsic:
    @intrinsic
    def read(typing: Any, place: Any, index: Any) -> tuple[Any, Codegen]:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            value = builder.load(_indexed(context, builder, signature, args, element, width), align=width)
            return getattr(builder, extend)(value, _I64) if extend else value

        return result(types.int64, index), codegen

    return read


byte_at = _reading(_I8, 1, types.int64, "zext")
"""byte_at(place, index): element of a uint8 array, as int64."""

int_at = _reading(_I32, 4, types.int64, "sext")
"""int_at(place, index): element of an int32 array, as int64."""

long_at = _reading(_I64, 8, types.int64)
"""long_at(place, index): element of an int64 array."""

float_at = _reading(_F32, 4, types.float32)
"""float_at(place, index): element of an f32 array."""


@intrinsic
def word_at(typing: Any, place: Any, offset: Any) -> tuple[Any, Codegen]:
    """Reads eight bytes from any byte on as uint64, the first one lowest."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return builder.load(_indexed(context, builder, signature, args, _I64, 1), align=1)

    return types.uint64(types.int64, offset), codegen


def _writing(element: ir.Type, width: int, stored: Any) -> Intrinsic:
    @intrinsic
    def write(typing: Any, place: Any, index: Any, value: Any) -> tuple[Any, Codegen]:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            converted = context.cast(builder, args[2], signature.args[2], stored)
            builder.store(converted, _indexed(context, builder, signature, args, element, width), align=width)
            return context.get_dummy_value()

        return types.void(types.int64, index, value), codegen

    return write


set_byte = _writing(_I8, 1, types.int8)
"""set_byte(place, index, value): writes an element of an int8 or uint8 array, the low byte of a longer integer."""

set_int = _writing(_I32, 4, types.int32)
"""set_int(place, index, value): writes an element of an int32 or uint32 array, the low half of a longer integer."""

set_long = _writing(_I64, 8, types.int64)
"""set_long(place, index, value): writes an element of an int64 or uint64 array."""

set_float = _writing(_F32, 4, types.float32)
"""set_float(place, index, value): writes an element of an f32 array."""


@intrinsic
def add_long(typing: Any, place: Any, index: Any, value: Any) -> tuple[Any, Codegen]:
    """Adds to an element of an int64 array."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        pointer = _indexed(context, builder, signature, args, _I64, 8)
        builder.store(builder.add(builder.load(pointer, align=8), args[2]), pointer, align=8)
        return context.get_dummy_value()

    return types.void(types.int64, index, types.int64), codegen


def _raised_by_one(ordering: str) -> Codegen:
    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], _I64.as_pointer())
        return builder.atomic_rmw("add", pointer, ir.Constant(_I64, 1), ordering)

    return codegen


@intrinsic
def claim(typing: Any, counter: Any) -> tuple[Any, Codegen]:
    """Raises an int64 counter by one, atomically; returns its value before."""
    return types.int64(types.int64), _raised_by_one("monotonic")


@intrinsic
def arrive(typing: Any, counter: Any) -> tuple[Any, Codegen]:
    """Does what `claim` does; and who comes later sees what those before had written when they came."""
    return types.int64(types.int64), _raised_by_one("acq_rel")


@intrinsic
def raise_int(typing: Any, place: Any, index: Any, value: Any) -> tuple[Any, Codegen]:
    """Raises an element of an int32 array to at least `value`, atomically."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        word = context.cast(builder, args[2], signature.args[2], types.int32)
        builder.atomic_rmw("max", _indexed(context, builder, signature, args, _I32, 4), word, "monotonic")
        return context.get_dummy_value()

    return types.void(types.int64, index, value), codegen


def _prefetching(width: int) -> Intrinsic:
    @intrinsic
    def prefetch(typing: Any, place: Any, index: Any) -> tuple[Any, Codegen]:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            pointer = _indexed(context, builder, signature, args, _I8, width)
            read, keep, data = (ir.Constant(_I32, value) for value in (0, 3, 1))
            call(builder, "llvm.prefetch.p0", ir.VoidType(), [pointer, read, keep, data])
            return context.get_dummy_value()

        return types.void(types.int64, index), codegen

    return prefetch


prefetch = _prefetching(4)
"""prefetch(place, index): asks for the cache line of an element of 4 bytes; any index is safe."""

prefetch_byte = _prefetching(1)
"""prefetch_byte(place, offset): asks for the cache line of a byte; any offset is safe."""


@intrinsic
def trailing_zeros(typing: Any, word: Any) -> tuple[Any, Codegen]:
    """Counts the zero bits below the lowest one bit, as int64; 64 for 0."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return call(builder, "llvm.cttz.i64", _I64, [args[0], ir.Constant(ir.IntType(1), 0)])

    return types.int64(types.uint64), codegen


@intrinsic
def pointer(typing: Any, address: Any) -> tuple[Any, Codegen]:
    """Makes an address a pointer without a type, for `carray`; the caller keeps what lies there alive."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), codegen
