"""Two rows of packed codes of 4 bits side by side in a register, for numba kernels: they are added at once.

A row of 16 codes has 8 bytes: one at a time, most instructions add zeros. Twice as many rows fit into the sums, too,
before these have to be widened.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir
from numba.core import types

from .memory import Codegen, element_pointer, intrinsic
from .simd_nibbles import BytesType, Nibbles, nibbles_of

_I8, _I32, _I64 = (ir.IntType(bits) for bits in (8, 32, 64))


class NibblePairs(NamedTuple):
    """The operations on two rows of INT4 codes that registers of one width offer to kernels."""

    both: Nibbles
    """Those on both rows; `store` adds their halves, which stand for so many `rows` together."""
    load_two: Callable[[int, int, Any], Any]
    """load_two(place, other, excess): the packed codes at two addresses, and 8 more each."""
    load_one: Callable[[int, Any], Any]
    """load_one(place, excess): those at one address, and 0 for the other row."""


def nibble_pairs_of(row_width: int) -> NibblePairs:
    """Makes the functions for rows of so many bytes each."""
    kind, of_row = BytesType(2 * row_width), ir.VectorType(_I8, row_width)

    def load_row(builder: ir.IRBuilder, place: Any) -> Any:
        return builder.load(element_pointer(builder, place, _I64(0), of_row, 1), align=1)

    def side_by_side(builder: ir.IRBuilder, one: Any, other: Any) -> Any:
        lanes = ir.Constant(ir.VectorType(_I32, 2 * row_width), list(range(2 * row_width)))
        return builder.shuffle_vector(one, other, lanes)

    @intrinsic
    def load_two(typing: Any, place: Any, other: Any, excess: Any) -> tuple[Any, Codegen]:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            rows = [load_row(builder, place) for place in args[:2]]
            return builder.xor(side_by_side(builder, *rows), args[2])

        return kind(types.int64, types.int64, kind), codegen

    @intrinsic
    def load_one(typing: Any, place: Any, excess: Any) -> tuple[Any, Codegen]:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            lanes = ir.Constant(ir.VectorType(_I32, row_width), list(range(row_width)))
            excess = builder.shuffle_vector(args[1], args[1], lanes)
            nothing = ir.Constant(of_row, [0] * row_width)
            return side_by_side(builder, builder.xor(load_row(builder, args[0]), excess), nothing)

        return kind(types.int64, kind), codegen

    return NibblePairs(nibbles_of(2 * row_width, num_halves=2), load_two, load_one)
