"""Gradients as small integers on a wire (paper 3.3, B.1): quantized per table, summed over the ranks in int32.

Codes are int8, int16, or integers in FP32 containers (the paper's wire); `code_bytes` 1, 2 or 4 tells which. Every
container holds the same integers, so that what is summed does not depend on it.
"""

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import types

from .compiled import inlined, kernel, serial
from .memory import float_at, int_at, long_at
from .merge import ENTRIES_PER_ITEM, PARTS, FoundRows, RankRows, Sum, part_of, place_row
from .threads import on_all_threads
from .vector import (
    FLOATS,
    LANES,
    WORDS,
    Codegen,
    divide,
    intrinsic,
    load,
    load_part,
    multiply,
    prefetch,
    round_clamp,
    splat,
    store_part,
)
from .words import no_words, store_codes

FP32_CODE_BYTES = 4

ROWS_PER_ITEM = 512
_AHEAD_FLOATS = 512
_I32, _I64, _F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
_WORD_VECTOR, _FLOAT_VECTOR = ir.VectorType(_I32, LANES), ir.VectorType(_F32, LANES)


class RankCodes(NamedTuple):
    """What K ranks sent."""

    codes: int  # int64[K]: addresses of the codes [N_k, D]
    code_bytes: int


@intrinsic
def load_codes(typing: Any, place: Any, index: Any, count: Any, code_bytes: Any) -> tuple[Any, Codegen]:
    """The `count` codes from element `index` on as int32, zeros above."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        place, index, count, code_bytes = args
        limit = builder.trunc(count, _I32)
        single = builder.insert_element(ir.Constant(_WORD_VECTOR, ir.Undefined), limit, ir.Constant(_I32, 0))
        limits = builder.shuffle_vector(
            single, ir.Constant(_WORD_VECTOR, ir.Undefined), ir.Constant(_WORD_VECTOR, [0] * LANES)
        )
        mask = builder.icmp_signed("<", ir.Constant(_WORD_VECTOR, list(range(LANES))), limits)
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
        result = builder.phi(_WORD_VECTOR)
        for words, block in loaded:
            result.add_incoming(words, block)
        return result

    return WORDS(types.int64, types.int64, types.int64, types.int64), codegen


def _masked_codes(builder: ir.IRBuilder, place: Any, index: Any, mask: Any, width: int) -> Any:
    element = _F32 if width == FP32_CODE_BYTES else ir.IntType(8 * width)
    kind = ir.VectorType(element, LANES)
    at = builder.add(place, builder.mul(index, ir.Constant(_I64, width)))
    arguments = [
        builder.inttoptr(at, kind.as_pointer()),
        ir.Constant(_I32, width),
        mask,
        ir.Constant(kind, [0] * LANES),
    ]
    name = f"llvm.masked.load.v{LANES}{'f32' if width == FP32_CODE_BYTES else f'i{8 * width}'}.p0"
    signature = ir.FunctionType(kind, [argument.type for argument in arguments])
    function = builder.module.globals.get(name) or ir.Function(builder.module, signature, name)
    loaded = builder.call(function, arguments)
    return builder.fptosi(loaded, _WORD_VECTOR) if width == FP32_CODE_BYTES else builder.sext(loaded, _WORD_VECTOR)


@intrinsic
def add_words(typing: Any, a: Any, b: Any) -> tuple[Any, Codegen]:
    """a + b in int32."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return builder.add(*args)

    return WORDS(WORDS, WORDS), codegen


@intrinsic
def to_floats(typing: Any, words: Any) -> tuple[Any, Codegen]:
    """The nearest f32 of each int32."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return builder.sitofp(args[0], _FLOAT_VECTOR)

    return FLOATS(WORDS), codegen


@kernel
def quantize_tables(
    values: int, pointer: int, num_tables: int, dim: int, steps: int, limit: np.float32, codes: int, code_bytes: int
) -> None:
    """codes [N, D] = values f32[N, D] over their table's step f32[T], kept within +-limit; pointer int64[T + 1].

    The values are finite and the steps above 0.
    """
    items = (long_at(pointer, num_tables) + ROWS_PER_ITEM - 1) // ROWS_PER_ITEM
    on_all_threads(items, _quantize_item, (values, pointer, num_tables, dim, steps, limit, codes, code_bytes))


@serial
def _quantize_item(
    values: int,
    pointer: int,
    num_tables: int,
    dim: int,
    steps: int,
    limit: np.float32,
    codes: int,
    code_bytes: int,
    item: int,
) -> None:
    start, stop = item * ROWS_PER_ITEM, (item + 1) * ROWS_PER_ITEM
    for table in range(num_tables):
        first, last = max(start, long_at(pointer, table)), min(stop, long_at(pointer, table + 1))
        _quantize(values, first * dim, last * dim, float_at(steps, table), limit, codes, code_bytes)


@serial
def _quantize(
    values: int, start: int, end: int, step: np.float32, limit: np.float32, codes: int, code_bytes: int
) -> None:
    k = start
    while k + LANES <= end:
        prefetch(values, k + _AHEAD_FLOATS)
        _store(codes, k, _rounded(load(values, k), step, limit), LANES, code_bytes)
        k += LANES
    if k < end:
        _store(codes, k, _rounded(load_part(values, k, end - k), step, limit), end - k, code_bytes)


@inlined
def _rounded(value: Any, step: np.float32, limit: np.float32) -> Any:
    # Divided, not multiplied by the inverse: the error stays within half a step.
    return round_clamp(divide(value, splat(step)), -limit, limit)


@inlined
def _store(codes: int, k: int, rounded: Any, count: int, code_bytes: int) -> None:
    if code_bytes == FP32_CODE_BYTES:
        store_part(codes, k, rounded, count)
    else:
        store_codes(codes, k, rounded, count, code_bytes)


@kernel
def sum_codes(ranks: RankRows, found: FoundRows, sent: RankCodes, steps: int, result: Sum) -> None:
    """Fills `result`: the ranks' codes summed in int32, times their table's step f32[T]."""
    num_rows = long_at(result.first_entry, ranks.num_tables * PARTS)
    items = (num_rows + ENTRIES_PER_ITEM - 1) // ENTRIES_PER_ITEM
    on_all_threads(items, _sum_entries, (ranks, found, sent, steps, result, num_rows))


@serial
def _sum_entries(
    ranks: RankRows, found: FoundRows, sent: RankCodes, steps: int, result: Sum, num_rows: int, item: int
) -> None:
    first, part = item * ENTRIES_PER_ITEM, 0
    for entry in range(first, min(num_rows, first + ENTRIES_PER_ITEM)):
        part = part_of(result, entry, part)
        sources = place_row(ranks, found, result, part, entry)
        step = float_at(steps, part // PARTS)
        _sum_ranks(ranks.num_ranks, sources, sent, result.dim, step, result.values + 4 * entry * result.dim)


@serial
def _sum_ranks(num_ranks: int, sources: int, sent: RankCodes, dim: int, step: np.float32, target: int) -> None:
    """target f32[D] = the sum over the ranks that have the row."""
    for k in range(0, dim, LANES):
        summed = no_words()
        for rank in range(num_ranks):
            source = int_at(sources, rank)
            if source >= 0:
                codes = load_codes(long_at(sent.codes, rank), source * dim + k, dim - k, sent.code_bytes)
                summed = add_words(summed, codes)
        store_part(target, k, multiply(to_floats(summed), splat(step)), dim - k)
