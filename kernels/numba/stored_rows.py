"""Master rows of fewer bits than FP32 (`kernels/master_rows.py`) in compiled code: read, and rounded by chance.

A chance is 32 bits that follow from the key of the row and the column. Nothing is rounded that fits: a row which an
update did not change keeps its bits.
"""

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir

from ..jit.arena import BF16_ROWS, FP32_ROWS, Arena
from ..jit.compile import inlined, kernel, serial
from ..jit.hashing import splitmix64
from ..jit.memory import Codegen, byte_at, call, float_at, intrinsic, long_at, set_byte
from ..jit.simd import (
    FLOAT_VECTOR,
    FLOATS,
    LANES,
    WORD_VECTOR,
    WORDS,
    load_bf16,
    load_part,
    multiply,
    round_clamp,
    same_words,
    splat,
    store_bf16,
    store_part,
)
from ..jit.simd_integers import as_float, larger, largest, load_codes, magnitude, no_words, store_codes, to_floats
from ..jit.threads import on_all_threads
from ..master_rows import CODE_BITS, LARGEST_CODE, LARGEST_MANTISSA, LEAST_KEPT, MANTISSA_BITS, NOT_FINITE
from .random_values import ROWS_PER_ITEM, fill_row, random_words

_LARGEST_MANTISSA, _NOT_FINITE = int(LARGEST_MANTISSA), int(NOT_FINITE)
_INFINITY = NOT_FINITE << MANTISSA_BITS
_LEAST_EXPONENT = int(np.float32(LEAST_KEPT).view(np.int32)) - (127 << MANTISSA_BITS)
"""What the bits of LEAST_KEPT times a power of two have beyond those of that power."""


class Chances(NamedTuple):
    """`RowChances` as the kernels read them."""

    key: np.uint64
    first_row: int  # address of int64[T]; 0: rows count from 0


@inlined
def row_key(chances: Chances, table: int, row: int) -> Any:
    """Returns the key of a row, of which this process may hold others before it than it has."""
    if chances.first_row:
        row += long_at(chances.first_row, table)
    return splitmix64(splitmix64(chances.key, table), row)


@inlined
def _scale_of(exponent: int) -> Any:
    return as_float(np.int32(exponent << MANTISSA_BITS))


@inlined
def load_stored(arena: Arena, arena_row: int, k: int, count: int) -> Any:
    """Returns the values of a row's `count` columns from k on, zeros above."""
    place = arena.weight + arena_row * arena.row_bytes
    if arena.form == FP32_ROWS:
        return load_part(place, k, count)
    if arena.form == BF16_ROWS:
        return load_bf16(place, k, count)
    codes = to_floats(load_codes(place, k, count, 1))
    return multiply(codes, splat(_scale_of(byte_at(place, arena.dim))))


@serial
def load_row(arena: Arena, arena_row: int, values: int) -> None:
    """Writes the values of a row to an address, f32[D]."""
    for k in range(0, arena.dim, LANES):
        store_part(values, k, load_stored(arena, arena_row, k, arena.dim - k), arena.dim - k)


@serial
def stored_magnitude(arena: Arena, start: int, end: int) -> int:
    """Returns the bits of the largest |value| of rows `start` to `end`; NaN is above all."""
    words = no_words()
    for row in range(start, end):
        for k in range(0, arena.dim, LANES):
            words = larger(words, magnitude(load_stored(arena, row, k, arena.dim - k)))
    return int(largest(words))


@intrinsic
def _bf16_by_chance(typing: Any, value: Any, chance: Any) -> tuple[Any, Codegen]:
    """Rounds to one of the two next BF16 numbers, the nearer the more probable; NaN and infinities stay."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        bits = builder.bitcast(args[0], WORD_VECTOR)
        moved = builder.add(bits, builder.lshr(args[1], same_words(16)))
        moved = builder.bitcast(builder.and_(moved, same_words(-(1 << 16))), FLOAT_VECTOR)
        exponent = builder.and_(bits, same_words(_INFINITY))
        return builder.select(builder.icmp_unsigned("==", exponent, same_words(_INFINITY)), args[0], moved)

    return FLOATS(FLOATS, WORDS), codegen


@intrinsic
def _whole_by_chance(typing: Any, value: Any, chance: Any) -> tuple[Any, Codegen]:
    """Rounds to one of the two next whole numbers, the nearer the more probable."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        below = call(builder, f"llvm.floor.v{LANES}f32", FLOAT_VECTOR, [args[0]])
        share = builder.fsub(args[0], below)
        upper = builder.uitofp(builder.lshr(args[1], same_words(8)), FLOAT_VECTOR)
        chance = builder.fmul(upper, ir.Constant(FLOAT_VECTOR, [2.0**-24] * LANES))
        above = builder.uitofp(builder.fcmp_ordered("<", chance, share), FLOAT_VECTOR)
        return builder.fadd(below, above)

    return FLOATS(FLOATS, WORDS), codegen


@serial
def store_row(arena: Arena, arena_row: int, values: int, words: Any, key: np.uint64) -> Any:
    """Writes values f32[D] as a row, rounded by chance; returns the magnitudes of what it is worth then, folded.

    `words`: the magnitudes of the values, folded.
    """
    place, dim = arena.weight + arena_row * arena.row_bytes, arena.dim
    low, high = np.uint32(key & np.uint64(0xFFFFFFFF)), np.uint32(key >> np.uint64(32))
    stored = no_words()
    if arena.form == BF16_ROWS:
        for k in range(0, dim, LANES):
            rounded = _bf16_by_chance(load_part(values, k, dim - k), random_words(low, high, k))
            store_bf16(place, k, rounded, dim - k)
            stored = larger(stored, magnitude(rounded))
        return stored
    exponent = _exponent_for(int(largest(words)), byte_at(place, dim))
    set_byte(place, dim, exponent)
    is_finite = exponent != _NOT_FINITE
    # Of a row that is not finite all codes are 0, which are NaN under an infinite scale.
    inverse = _scale_of(254 - exponent) if is_finite else np.float32(0)
    for k in range(0, dim, LANES):
        rounded = _whole_by_chance(multiply(load_part(values, k, dim - k), splat(inverse)), random_words(low, high, k))
        store_codes(place, k, rounded, dim - k, 1)
        stored = larger(stored, magnitude(multiply(rounded, splat(_scale_of(exponent)))))
    return stored


@inlined
def _exponent_for(bits: int, before: int) -> int:
    """Returns the exponent of the scale of a row whose largest magnitude has these bits.

    The smallest under which it is 127 or less; the one before where it is that, and LEAST_KEPT or more.
    """
    if bits >= _INFINITY:
        return _NOT_FINITE
    scale = before << MANTISSA_BITS
    if bits == 0:
        return before if before != _NOT_FINITE else 0
    if (
        0 < before < _NOT_FINITE
        and scale + _LEAST_EXPONENT <= bits <= scale + (CODE_BITS << MANTISSA_BITS) + _LARGEST_MANTISSA
    ):
        return before
    exponent = (bits >> MANTISSA_BITS) - CODE_BITS
    if bits & ((1 << MANTISSA_BITS) - 1) > _LARGEST_MANTISSA:
        exponent += 1
    return max(exponent, 1)


@serial
def _store_nearest(arena: Arena, arena_row: int, values: int) -> None:
    """Writes values f32[D], which are finite, as a row, rounded half to even."""
    place, dim = arena.weight + arena_row * arena.row_bytes, arena.dim
    words = no_words()
    for k in range(0, dim, LANES):
        part = load_part(values, k, dim - k)
        words = larger(words, magnitude(part))
        if arena.form == BF16_ROWS:
            store_bf16(place, k, part, dim - k)
    if arena.form != BF16_ROWS:
        exponent = _exponent_for(int(largest(words)), 0)
        set_byte(place, dim, exponent)
        inverse, limit = splat(_scale_of(254 - exponent)), np.float32(LARGEST_CODE)
        for k in range(0, dim, LANES):
            codes = round_clamp(multiply(load_part(values, k, dim - k), inverse), -limit, limit)
            store_codes(place, k, codes, dim - k, 1)


@kernel
def init_stored(arena: Arena, scale: int, seed_word: np.uint64, room: int) -> None:
    """Does what `init_uniform` does, each row rounded to the nearest; room: f32[items of ROWS_PER_ITEM rows, D]."""
    rows = long_at(arena.first_row, arena.num_tables)
    on_all_threads((rows + ROWS_PER_ITEM - 1) // ROWS_PER_ITEM, _init_rows, (arena, scale, seed_word, room))


@serial
def _init_rows(arena: Arena, scale: int, seed_word: np.uint64, room: int, item: int) -> None:
    table, rows = 0, long_at(arena.first_row, arena.num_tables)
    values = room + 4 * item * arena.dim
    for row in range(item * ROWS_PER_ITEM, min(rows, (item + 1) * ROWS_PER_ITEM)):
        while row >= long_at(arena.first_row, table + 1):
            table += 1
        fill_row(splitmix64(seed_word, row), float_at(scale, table), values, arena.dim)
        _store_nearest(arena, row, values)
