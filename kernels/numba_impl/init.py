"""Initial weights from a counter-based hash: the same for any number of threads, which also place the pages."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types

from .arena import Arena
from .compiled import inlined, kernel, serial
from .hashing import mixed
from .memory import float_at, intrinsic, long_at
from .threads import on_all_threads
from .vector import FLOATS, LANES, Codegen, multiply, splat, store_part

_ROWS_PER_ITEM = 1 << 12

_I32 = ir.IntType(32)
_WORDS = ir.VectorType(_I32, LANES)


@intrinsic
def _odd_numbers(typing: Any, low: Any, high: Any, column: Any) -> tuple[Any, Codegen]:
    """Odd numbers between -2^23 and 2^23, as floats, of LANES columns of the row whose keys are low and high."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        def everywhere(value: Any) -> Any:
            single = builder.insert_element(ir.Constant(_WORDS, ir.Undefined), value, ir.Constant(_I32, 0))
            return builder.shuffle_vector(single, ir.Constant(_WORDS, ir.Undefined), ir.Constant(_WORDS, [0] * LANES))

        def folded(value: Any, shift: int) -> Any:
            return builder.xor(value, builder.lshr(value, ir.Constant(_WORDS, [shift] * LANES)))

        def times(value: Any, factor: int) -> Any:
            return builder.mul(value, ir.Constant(_WORDS, [factor] * LANES))

        low, high = everywhere(args[0]), everywhere(args[1])
        first = builder.trunc(context.cast(builder, args[2], signature.args[2], types.int64), _I32)
        columns = builder.add(everywhere(first), ir.Constant(_WORDS, list(range(LANES))))
        x = builder.xor(low, times(columns, 0x9E3779B9))
        x = builder.xor(times(folded(x, 16), 0x21F0AAAD), high)
        x = folded(times(folded(x, 15), 0x735A2D97), 15)
        upper = builder.lshr(x, ir.Constant(_WORDS, [9] * LANES))
        odd = builder.add(
            builder.shl(upper, ir.Constant(_WORDS, [1] * LANES)), ir.Constant(_WORDS, [1 - 2**23] * LANES)
        )
        return builder.sitofp(odd, ir.VectorType(ir.FloatType(), LANES))

    return FLOATS(types.uint32, types.uint32, column), codegen


@inlined
def _fill_row(key: np.uint64, scale: np.float32, place: int, dim: int) -> None:
    low, high = np.uint32(key & np.uint64(0xFFFFFFFF)), np.uint32(key >> np.uint64(32))
    for c in range(0, dim, LANES):
        store_part(place, c, multiply(_odd_numbers(low, high, c), splat(scale)), dim - c)


@kernel
def init_uniform(arena: Arena, scale: int, seed_word: np.uint64) -> None:
    """scale f32[T]: each table's bound over 2^23."""
    rows = long_at(arena.first_row, arena.num_tables)
    on_all_threads((rows + _ROWS_PER_ITEM - 1) // _ROWS_PER_ITEM, _fill_rows, (arena, scale, seed_word))


@serial
def _fill_rows(arena: Arena, scale: int, seed_word: np.uint64, item: int) -> None:
    table, rows = 0, long_at(arena.first_row, arena.num_tables)
    for row in range(item * _ROWS_PER_ITEM, min(rows, (item + 1) * _ROWS_PER_ITEM)):
        while row >= long_at(arena.first_row, table + 1):
            table += 1
        place = arena.weight + 4 * row * arena.dim
        _fill_row(mixed(seed_word, row), float_at(scale, table), place, arena.dim)
