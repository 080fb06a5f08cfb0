"""Two atomic operations: claiming work, and raising a bound that several threads share.

Neither makes a result depend on the order of the threads: a claimed item is the same whoever works on it, and a maximum
does not know in which order it was found.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic as numba_intrinsic

Codegen = Callable[[Any, ir.IRBuilder, Any, Any], Any]
intrinsic: Callable[[Callable[..., tuple[Any, Codegen]]], Callable[..., Any]] = numba_intrinsic


def _element(context: Any, builder: ir.IRBuilder, kind: Any, array: Any, index: Any) -> Any:
    return builder.gep(context.make_array(kind)(context, builder, array).data, [index])


@intrinsic
def claim(typing: Any, counter: Any) -> tuple[Any, Codegen]:
    """The value of counter[0] (int64) before it is raised by one."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        pointer = _element(context, builder, signature.args[0], args[0], ir.Constant(ir.IntType(64), 0))
        return builder.atomic_rmw("add", pointer, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(counter), codegen


@intrinsic
def raise_to(typing: Any, array: Any, index: Any, value: Any) -> tuple[Any, Codegen]:
    """array[index] = max(array[index], value), all int32."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        at = context.cast(builder, args[1], signature.args[1], types.int64)
        pointer = _element(context, builder, signature.args[0], args[0], at)
        builder.atomic_rmw("max", pointer, args[2], "monotonic")
        return context.get_dummy_value()

    return types.void(array, index, types.int32), codegen
