"""Random values from counter-based hashes, the same for any number of threads: initial weights, stochastic rounding."""

from typing import Any, NamedTuple

import numpy as np
import torch
from llvmlite import ir
from numba.core import types
from torch import Tensor

from ..jit.arena import Arena
from ..jit.compile import inlined, kernel, serial, thorough_kernel
from ..jit.hashing import splitmix64
from ..jit.memory import Codegen, as_index, float_at, int_at, intrinsic, long_at, set_float
from ..jit.simd import (
    FLOAT_VECTOR,
    FLOATS,
    LANES,
    WORD_VECTOR,
    WORDS,
    every_lane,
    multiply,
    same_words,
    splat,
    store_part,
)
from ..jit.threads import on_all_threads

ROWS_PER_ITEM = 1 << 12
_ROUNDED_AT_ONCE = 512
_CHANCE_BITS = 24
"""The bits of a chance: an FP32 number between 0 and 1 holds so many exactly."""


def _hashes(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
    """Generates 32 bits for each of LANES columns of a row; arguments: the low and the high key, the first column."""

    def folded(value: Any, shift: int) -> Any:
        return builder.xor(value, builder.lshr(value, same_words(shift)))

    def times(value: Any, factor: int) -> Any:
        return builder.mul(value, same_words(factor))

    low, high = every_lane(builder, args[0]), every_lane(builder, args[1])
    first = builder.trunc(as_index(context, builder, signature.args[2], args[2]), ir.IntType(32))
    columns = builder.add(every_lane(builder, first), ir.Constant(WORD_VECTOR, list(range(LANES))))
    x = builder.xor(low, times(columns, 0x9E3779B9))
    x = builder.xor(times(folded(x, 16), 0x21F0AAAD), high)
    return folded(times(folded(x, 15), 0x735A2D97), 15)


@intrinsic
def random_words(typing: Any, low: Any, high: Any, column: Any) -> tuple[Any, Codegen]:
    """Draws 32 bits for each of LANES columns of the row whose keys are low and high."""
    return WORDS(types.uint32, types.uint32, column), _hashes


@intrinsic
def _odd_numbers(typing: Any, low: Any, high: Any, column: Any) -> tuple[Any, Codegen]:
    """Draws odd numbers in (-2^23, 2^23), as floats, for LANES columns of the row whose keys are low and high."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        upper = builder.lshr(_hashes(context, builder, signature, args), same_words(9))
        odd = builder.add(builder.shl(upper, same_words(1)), same_words(1 - 2**23))
        return builder.sitofp(odd, FLOAT_VECTOR)

    return FLOATS(types.uint32, types.uint32, column), codegen


@inlined
def fill_row(key: np.uint64, scale: np.float32, place: int, dim: int) -> None:
    """Draws the initial weights of a row, f32[D] at an address."""
    low, high = np.uint32(key & np.uint64(0xFFFFFFFF)), np.uint32(key >> np.uint64(32))
    for c in range(0, dim, LANES):
        store_part(place, c, multiply(_odd_numbers(low, high, c), splat(scale)), dim - c)


@kernel
def init_uniform(arena: Arena, scale: int, seed_word: np.uint64) -> None:
    """Fills the tables with initial weights; scale f32[T]: each table's bound over 2^23."""
    rows = long_at(arena.first_row, arena.num_tables)
    on_all_threads((rows + ROWS_PER_ITEM - 1) // ROWS_PER_ITEM, _fill_rows, (arena, scale, seed_word))


@serial
def _fill_rows(arena: Arena, scale: int, seed_word: np.uint64, item: int) -> None:
    table, rows = 0, long_at(arena.first_row, arena.num_tables)
    for row in range(item * ROWS_PER_ITEM, min(rows, (item + 1) * ROWS_PER_ITEM)):
        while row >= long_at(arena.first_row, table + 1):
            table += 1
        place = arena.weight + 4 * row * arena.dim
        fill_row(splitmix64(seed_word, row), float_at(scale, table), place, arena.dim)


class RoundedTables(NamedTuple):
    """Addresses of values of tables and of what rounds them. The values are finite and the scales above 0."""

    values: int  # f32[N, D]
    rows: int  # int32[N], by table
    pointer: int  # int64[T + 1], into both
    num_tables: int
    dim: int
    scales: int  # f32[T]
    key: np.uint64


@thorough_kernel
def round_tables(rounding: RoundedTables, out: int) -> None:
    """Writes out f32[N, D] = whole multiples of their table's scale beside the values, one of the two next ones."""
    num_rows = long_at(rounding.pointer, rounding.num_tables)
    on_all_threads((num_rows + _ROUNDED_AT_ONCE - 1) // _ROUNDED_AT_ONCE, _round_item, (rounding, out))


@serial
def _round_item(rounding: RoundedTables, out: int, item: int) -> None:
    start, stop, dim = item * _ROUNDED_AT_ONCE, (item + 1) * _ROUNDED_AT_ONCE, rounding.dim
    for table in range(rounding.num_tables):
        first, last = max(start, long_at(rounding.pointer, table)), min(stop, long_at(rounding.pointer, table + 1))
        scale, of_table = float_at(rounding.scales, table), splitmix64(rounding.key, table)
        for entry in range(first, last):
            _round_row(
                rounding.values, entry * dim, dim, scale, splitmix64(of_table, int_at(rounding.rows, entry)), out
            )


def rounded(values: Tensor, rows: Tensor, pointer: Tensor, scales: Tensor, key: int) -> Tensor:
    """Returns what `round_tables` makes of tensors."""
    # Named, so that a copy that had to be made lives until the kernel is done.
    values, rows, pointer, scales = (tensor.contiguous() for tensor in (values, rows, pointer, scales))
    out = torch.empty_like(values)
    places = values.data_ptr(), rows.data_ptr(), pointer.data_ptr()
    rounding = RoundedTables(*places, scales.numel(), values.shape[1], scales.data_ptr(), np.uint64(key))
    round_tables(rounding, out.data_ptr())
    return out


@serial
def _round_row(values: int, start: int, dim: int, scale: np.float32, key: np.uint64, out: int) -> None:
    for column in range(dim):
        scaled = float_at(values, start + column) / scale
        below = np.float32(np.floor(scaled))
        # Exact, unlike a sum of the value and a chance: near 32767 that would round, and lean to one side.
        chance = np.float32(splitmix64(key, column) >> np.uint64(64 - _CHANCE_BITS)) * np.float32(2.0**-_CHANCE_BITS)
        above = np.float32(1) if chance < scaled - below else np.float32(0)
        set_float(out, start + column, (below + above) * scale)
