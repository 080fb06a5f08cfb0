"""Runs a function on all threads: those of torch, straight through the entry of the OpenMP runtime that it is bound to.

numba's own `prange` compiles a kernel and all that it calls three times over, a third of the time until a first step,
drops writes through the fields of a NamedTuple without a word, and may bring a second runtime along, whose threads
fight with those of torch for the cores.
"""

import ctypes
from typing import Any

import llvmlite.binding
import torch
from llvmlite import ir
from numba.core import cgutils, types

from ..interface import KernelsUnavailableError
from .memory import Codegen, intrinsic

_ENTRY, _THREAD, _THREADS = "GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads"

_I32, _I64, _VOID = ir.IntType(32), ir.IntType(64), ir.VoidType()
_PLACE = ir.IntType(8).as_pointer()
_REGION = ir.FunctionType(_VOID, [_PLACE])
_COUNT, _FAILED, _ARGUMENTS = 0, 1, 2  # what the threads of a region share


def _make_runtime_known() -> None:
    """Lets compiled code, also what comes from the disk, find the runtime that torch is bound to."""
    binding: Any = torch._C
    # As the linker looked when it bound torch: a preloaded runtime comes first, then those that its libraries need.
    libraries = ctypes.CDLL(None), ctypes.CDLL(binding.__file__)
    runtime = next((library for library in libraries if hasattr(library, _ENTRY)), None)
    if runtime is None:
        raise KernelsUnavailableError("the numba kernels need a torch that was built with OpenMP; this one was not")
    for name in (_ENTRY, _THREAD, _THREADS):
        llvmlite.binding.add_symbol(name, ctypes.cast(getattr(runtime, name), ctypes.c_void_p).value)


_make_runtime_known()


@intrinsic
def on_all_threads(typing: Any, count: Any, function: Any, arguments: Any) -> tuple[Any, Codegen]:
    """Calls function(*arguments, item) for every item from 0 to `count`, each thread with a stretch of them.

    `arguments` is a tuple. What an item does must not depend on which others ran before it.
    """
    of_item = function.get_call_type(typing, (*arguments.types, types.int64), {})
    compiled = function.dispatcher.get_compile_result(of_item)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        context.active_code_library.add_linking_library(compiled.library)
        count = context.cast(builder, args[0], signature.args[0], types.int64)
        packed = _uncounted(context, builder, signature.args[2], args[2])
        shared = cgutils.alloca_once(builder, ir.LiteralStructType([_I64, _I32, packed.type]))
        for place, value in ((_COUNT, count), (_FAILED, _I32(0)), (_ARGUMENTS, packed)):
            builder.store(value, _field(builder, shared, place))
        stretch = _stretch(context, builder, shared.type, compiled.fndesc, (of_item, signature.args[2].types))
        with builder.if_else(builder.icmp_signed(">", count, _I64(1))) as (several, one):
            with several:
                entry_type = ir.FunctionType(_VOID, [_REGION.as_pointer(), _PLACE, _I32, _I32])
                entry = cgutils.get_or_insert_function(builder.module, entry_type, _ENTRY)
                usual = _I32(0)  # as many threads as torch uses
                builder.call(entry, [_region(stretch), builder.bitcast(shared, _PLACE), usual, _I32(0)])
            with one:
                builder.call(stretch, [shared, _I64(0), _I64(1)])
        failed = builder.load(_field(builder, shared, _FAILED))
        with builder.if_then(builder.icmp_signed("!=", failed, _I32(0)), likely=False):
            context.call_conv.return_user_exc(builder, RuntimeError, ("a kernel failed on one of its threads",))
        return context.get_dummy_value()

    return types.void(count, function, arguments), codegen


def _uncounted(context: Any, builder: ir.IRBuilder, kind: Any, value: Any) -> Any:
    """Returns arrays without what counts their references: all threads would wait for the same few counters."""
    if isinstance(kind, types.Array):
        array = context.make_array(kind)(context, builder, value)
        array.meminfo = cgutils.get_null_value(array.meminfo.type)
        array.parent = cgutils.get_null_value(array.parent.type)
        return array._getvalue()
    parts: Any = kind
    if isinstance(kind, types.BaseTuple):
        for place, of_one in enumerate(parts.types):
            part = _uncounted(context, builder, of_one, builder.extract_value(value, place))
            value = builder.insert_value(value, part, place)
    return value


def _field(builder: ir.IRBuilder, shared: Any, place: int) -> Any:
    return builder.gep(shared, [_I32(0), _I32(place)])


def _stretch(
    context: Any, caller: ir.IRBuilder, shared: ir.Type, called: Any, of_types: tuple[Any, Any]
) -> ir.Function:
    """Builds void(shared, thread, threads), which runs the items of one thread."""
    of_item, given = of_types
    module = caller.module
    stretch = _internal(module, ir.FunctionType(_VOID, [shared, _I64, _I64]), "stretch")
    builder = ir.IRBuilder(stretch.append_basic_block())
    place, thread, threads = stretch.args
    count = builder.load(_field(builder, place, _COUNT))
    values = cgutils.unpack_tuple(builder, builder.load(_field(builder, place, _ARGUMENTS)))
    wanted = of_item.args
    values = [context.cast(builder, *of_one) for of_one in zip(values, given, wanted[:-1], strict=True)]
    start = builder.sdiv(builder.mul(count, thread), threads)
    end = builder.sdiv(builder.mul(count, builder.add(thread, _I64(1))), threads)
    function = context.declare_function(module, called)
    with cgutils.for_range_slice(builder, start, end, _I64(1), _I64) as (item, _):
        status, _ = context.call_conv.call_function(builder, function, of_item.return_type, wanted, [*values, item])
        with builder.if_then(status.is_error, likely=False):
            builder.store(_I32(1), _field(builder, place, _FAILED))
    builder.ret_void()
    return stretch


def _region(stretch: ir.Function) -> ir.Function:
    """Builds the function that the runtime calls on each thread."""
    module = stretch.module
    region = _internal(module, _REGION, "region")
    builder = ir.IRBuilder(region.append_basic_block())
    numbers = []
    for name in (_THREAD, _THREADS):
        ask = cgutils.get_or_insert_function(module, ir.FunctionType(_I32, []), name)
        numbers.append(builder.sext(builder.call(ask, []), _I64))
    builder.call(stretch, [builder.bitcast(region.args[0], stretch.args[0].type), *numbers])
    builder.ret_void()
    return region


def _internal(module: ir.Module, kind: ir.FunctionType, name: str) -> ir.Function:
    function = ir.Function(module, kind, module.get_unique_name(name))
    function.linkage = "internal"
    return function
