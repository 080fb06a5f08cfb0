"""Rows of tables that stay packed: where they lie, and their codes of 2 to 16 bits to FP32 as they are read."""

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import types

from ..jit.compile import inlined, serial
from ..jit.memory import (
    Codegen,
    byte_at,
    call,
    element_pointer,
    int_at,
    intrinsic,
    long_at,
    prefetch_byte,
    word_at,
)
from ..jit.simd import FLOAT_VECTOR, FLOATS, LANES, WORD_VECTOR
from ..jit.simd_integers import how_many

CODE_BITS = range(2, 17)
"""Widths of codes that can be read."""

FLOAT_BITS = 32
"""The bits of a table in FP32."""

BANDED = 0
"""Stands for the bits of a table whose rows lie in bands, each a table with bits of its own.

`codes` then is the address of int64[bands, TABLE_LONGS]. A band's `num_rows` is the number behind that of its last row,
and its `codes` the place where row 0 would lie, so that a row's number needs no subtraction."""

ROWS_PER_RANK = 512
"""Rows of a sparse table for which its `rank` has a count."""

_LINE_BYTES = 64
_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)


class TablePlaces(NamedTuple):
    """A table, and where its ids stand in a row of ids; places are addresses, those of arrays that nobody has are 0."""

    codes: int  # uint8[stored rows, row_bytes]
    row_bytes: int
    dim: int
    bits: int
    num_rows: int
    bitmap: int  # of a sparse table: a bit for each row that is stored
    rank: int  # int32, the rows stored before every ROWS_PER_RANK rows
    stored_rows: int
    first_slot: int
    num_slots: int
    is_bag: int  # ids may be -1, for none
    is_mean: int
    scale: int  # f32[1]
    offset: int  # f32[1], or 0
    rounded_bits: int  # of the codes that a table in FP32 is rounded to; 0: it is read as it is


TABLE_LONGS = len(TablePlaces._fields)
_NUM_ROWS = TablePlaces._fields.index("num_rows")


@inlined
def table_at(tables: int, number: int) -> TablePlaces:
    """Reads a table of int64[tables, TABLE_LONGS]."""
    at = tables + 8 * TABLE_LONGS * number
    return TablePlaces(
        long_at(at, 0),
        long_at(at, 1),
        long_at(at, 2),
        long_at(at, 3),
        long_at(at, 4),
        long_at(at, 5),
        long_at(at, 6),
        long_at(at, 7),
        long_at(at, 8),
        long_at(at, 9),
        long_at(at, 10),
        long_at(at, 11),
        long_at(at, 12),
        long_at(at, 13),
        long_at(at, 14),
    )


class Ids(NamedTuple):
    """Ids of rows, in elements apart; `place` is an address of int64 or int32."""

    place: int
    is_long: int
    row_stride: int
    slot_stride: int


@inlined
def id_at(ids: Ids, row: int, slot: int) -> int:
    """Returns an id."""
    at = row * ids.row_stride + slot * ids.slot_stride
    return int(long_at(ids.place, at)) if ids.is_long else int(int_at(ids.place, at))


@intrinsic
def load_codes_of_bits(typing: Any, place: Any, bits: Any, count: Any) -> tuple[Any, Codegen]:
    """Reads LANES codes of 2 to 16 bits, two's complement, the lowest bits first; bytes of the first `count` alone."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        place, bits, count = args
        done = builder.append_basic_block("unpacked")
        blocks = {width: builder.append_basic_block(f"bits_{width}") for width in CODE_BITS}
        switch = builder.switch(bits, blocks[4])
        results = []
        for width, block in blocks.items():
            if width != 4:
                switch.add_case(_I64(width), block)
            builder.position_at_end(block)
            result = _unpacked(builder, _loaded(builder, place, count, width), width)
            results.append((result, builder.block))
            builder.branch(done)
        builder.position_at_end(done)
        value = builder.phi(FLOAT_VECTOR)
        for result, block in results:
            value.add_incoming(result, block)
        return value

    return FLOATS(types.int64, types.int64, types.int64), codegen


def _loaded(builder: ir.IRBuilder, place: Any, count: Any, bits: int) -> Any:
    """Generates a load of the bytes of LANES codes; those of codes beyond `count` are not touched."""
    num_bytes = LANES * bits // 8
    kind = ir.VectorType(_I8, num_bytes)
    pointer = element_pointer(builder, place, _I64(0), kind, 1)
    with builder.if_else(builder.icmp_signed(">=", count, _I64(LANES)), likely=True) as (whole, part):
        with whole:
            all_bytes, of_whole = builder.load(pointer, align=1), builder.block
        with part:
            used = builder.lshr(builder.add(builder.mul(count, _I64(bits)), _I64(7)), _I64(3))
            numbers = ir.Constant(ir.VectorType(_I32, num_bytes), list(range(num_bytes)))
            limit = builder.insert_element(ir.Constant(numbers.type, ir.Undefined), builder.trunc(used, _I32), _I32(0))
            limit = builder.shuffle_vector(limit, limit, ir.Constant(numbers.type, [0] * num_bytes))
            mask = builder.icmp_signed("<", numbers, limit)
            arguments = [pointer, _I32(1), mask, ir.Constant(kind, [0] * num_bytes)]
            some_bytes = call(builder, f"llvm.masked.load.v{num_bytes}i8.p0", kind, arguments)
            of_part = builder.block
    loaded = builder.phi(kind)
    loaded.add_incoming(all_bytes, of_whole)
    loaded.add_incoming(some_bytes, of_part)
    return loaded


def _unpacked(builder: ir.IRBuilder, packed: Any, bits: int) -> Any:
    """Generates the codes in bytes: a lane gets the three bytes that its code may lie in, shifted left, then right."""
    num_bytes = LANES * bits // 8
    order, shifts = [], []
    for lane in range(LANES):
        first = lane * bits // 8
        order += [at if at < num_bytes else num_bytes for at in range(first, first + 3)] + [num_bytes]
        shifts.append(32 - bits - lane * bits % 8)
    zeros = ir.Constant(packed.type, [0] * num_bytes)
    spread = builder.shuffle_vector(packed, zeros, ir.Constant(ir.VectorType(_I32, 4 * LANES), order))
    words = builder.shl(builder.bitcast(spread, WORD_VECTOR), ir.Constant(WORD_VECTOR, shifts))
    return builder.sitofp(builder.ashr(words, ir.Constant(WORD_VECTOR, [32 - bits] * LANES)), FLOAT_VECTOR)


@inlined
def lies_in_one_line(table: TablePlaces) -> bool:
    """Tells whether no row crosses the end of a cache line: their bytes are 2^n, and they lie on multiples of it."""
    return table.row_bytes <= _LINE_BYTES and not (table.row_bytes | table.codes) & (table.row_bytes - 1)


@inlined
def band_of_row(table: TablePlaces, row: int) -> TablePlaces:
    """Returns the band of a table in bands that holds one of its rows."""
    number = 0
    while row >= long_at(table.codes, number * TABLE_LONGS + _NUM_ROWS):
        number += 1
    band: TablePlaces = table_at(table.codes, number)
    return band


@serial
def _prefetch_banded(table: TablePlaces, row: int) -> None:
    band = band_of_row(table, row)
    at = row * band.row_bytes
    for k in range(0, band.row_bytes, _LINE_BYTES):
        prefetch_byte(band.codes, at + k)
    prefetch_byte(band.codes, at + band.row_bytes - 1)


@inlined
def prefetch_packed(table: TablePlaces, row: int) -> None:
    """Asks for the lines of a row, or of the bit that says whether it is stored; any row is safe."""
    if table.bitmap:
        prefetch_byte(table.bitmap, row >> 3)
        return
    if table.bits == BANDED:
        if 0 <= row < table.num_rows:
            _prefetch_banded(table, row)
        return
    at = row * table.row_bytes
    for k in range(0, table.row_bytes, _LINE_BYTES):
        prefetch_byte(table.codes, at + k)
    if not lies_in_one_line(table):
        prefetch_byte(table.codes, at + table.row_bytes - 1)


@serial
def place_of_row(table: TablePlaces, row: int) -> int:
    """Returns the address of a row's codes; 0 where it is not stored, -1 where the file contradicts itself."""
    if not table.bitmap:
        return int(table.codes + row * table.row_bytes)
    byte, within = row >> 3, row & 7
    bits = byte_at(table.bitmap, byte)
    if not (bits >> within) & 1:
        return 0
    block = row // ROWS_PER_RANK
    place = int_at(table.rank, block) + how_many(bits & ((1 << within) - 1))
    at = block * (ROWS_PER_RANK // 8)
    while at + 8 <= byte:
        place += how_many(np.int64(word_at(table.bitmap, at)))
        at += 8
    while at < byte:
        place += how_many(byte_at(table.bitmap, at))
        at += 1
    if place < 0 or place >= table.stored_rows:
        return -1
    return int(table.codes + place * table.row_bytes)
