"""What rows of packed tables stand for: one row, or the sum or mean of a bag's, with one multiply for all of them."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..jit.compile import inlined, serial
from ..jit.memory import float_at, int_at, long_at
from ..jit.simd import LANES, add, load_part, multiply, round_clamp, splat, store, store_part
from ..jit.simd_nibble_pairs import nibble_pairs_of
from ..jit.simd_nibbles import MOST_ROWS, NIBBLE_BITS, WIDTHS, nibbles_of
from .packed_rows import (
    BANDED,
    FLOAT_BITS,
    Ids,
    TablePlaces,
    band_of_row,
    id_at,
    load_codes_of_bits,
    place_of_row,
)
from .packed_single_rows import write_slot


@serial
def look_up_rows(table: TablePlaces, ids: Ids, start: int, stop: int, target: int, stride: int, masks: int) -> int:
    """Writes f32[dim] for each row of ids, `stride` floats apart: a table's row, or what a bag pools.

    Rows in FP32 are rounded to codes as they are read, so that a run that was not packed gives the same.

    :param masks: NIBBLE_MASKS.
    :returns: 0, or 1 if the file is bad.
    """
    if table.bits == BANDED or (table.bits == FLOAT_BITS and not table.is_bag):
        for row in range(start, stop):
            _write_one(table, ids, row, target + 4 * (row - start) * stride)
    elif table.bits == NIBBLE_BITS and not table.bitmap:
        if table.num_slots > 1:
            _pool_nibbles(table, ids, ids.is_long, 1, 0, start, stop, target, stride, masks)
        elif table.dim == LANES:
            write_slot(table, ids, ids.is_long, 1, start, stop, target, stride)
        else:
            write_slot(table, ids, ids.is_long, 0, start, stop, target, stride)
    elif table.is_bag or table.bitmap or table.offset or table.dim % LANES:
        return int(_pool_all_codes(table, ids, 0, start, stop, target, stride))
    else:
        scale = splat(float_at(table.scale, 0))
        for row in range(start, stop):
            place, out = table.codes + id_at(ids, row, table.first_slot) * table.row_bytes, 4 * (row - start) * stride
            for k in range(0, table.dim, LANES):
                codes = load_codes_of_bits(place + k * table.bits // 8, table.bits, LANES)
                store(target + out, k, multiply(codes, scale))
    return 0


@serial
def _write_one(table: TablePlaces, ids: Ids, row: int, target: int) -> None:
    """Writes f32[dim] for one row of ids: of a table in bands, or in FP32."""
    if table.bits == BANDED:
        _pool_banded(table, ids, row, target)
    else:
        _round_row(table, id_at(ids, row, table.first_slot), target)


@serial
def _pool_banded(table: TablePlaces, ids: Ids, row: int, target: int) -> None:
    """Writes f32[dim]: the sum or mean of the rows of one bag, each by the codes, scale and offset of its band."""
    count = 0
    for slot in range(table.first_slot, table.first_slot + table.num_slots):
        number = id_at(ids, row, slot)
        if number < 0:
            continue
        band = band_of_row(table, number)
        place, scale, offset = band.codes + number * band.row_bytes, float_at(band.scale, 0), float_at(band.offset, 0)
        for k in range(0, table.dim, LANES):
            codes = load_codes_of_bits(place + k * band.bits // 8, band.bits, table.dim - k)
            value = add(multiply(codes, splat(scale)), splat(offset))
            if count:
                value = add(load_part(target, k, table.dim - k), value)
            store_part(target, k, value, table.dim - k)
        count += 1
    if table.is_mean or not count:
        share = np.float32(1) / np.float32(count) if count else np.float32(0)
        for k in range(0, table.dim, LANES):
            value = load_part(target, k, table.dim - k) if count else splat(np.float32(0))
            store_part(target, k, multiply(value, splat(share)), table.dim - k)


@inlined
def _round_row(table: TablePlaces, number: int, target: int) -> None:
    place, scale = table.codes + number * table.row_bytes, float_at(table.scale, 0)
    inverse, limit = np.float32(1) / scale, np.float32(1 << (max(table.rounded_bits, 1) - 1))
    for k in range(0, table.dim, LANES):
        values = load_part(place, k, table.dim - k)
        if table.rounded_bits:
            codes = round_clamp(multiply(values, splat(inverse)), -limit, limit - np.float32(1))
            values = multiply(codes, splat(scale))
        store_part(target, k, values, table.dim - k)


@serial
def pool_packed(table: TablePlaces, ids: Ids, offsets: int, first: int, end: int, target: int, masks: int) -> int:
    """Writes f32[end - first, dim] of bags: the first row of ids from one of int64 `offsets` to the next.

    :param masks: NIBBLE_MASKS.
    :returns: 1 if the file is bad.
    """
    if table.bits == NIBBLE_BITS and not table.bitmap:
        if table.dim in (16, 32, 64):
            if ids.is_long:
                _pool_rows_in_pairs(table, ids, 1, offsets, first, end, target, masks)
            else:
                _pool_rows_in_pairs(table, ids, 0, offsets, first, end, target, masks)
        elif ids.is_long:
            _pool_nibbles(table, ids, 1, 0, offsets, first, end, target, table.dim, masks)
        else:
            _pool_nibbles(table, ids, 0, 0, offsets, first, end, target, table.dim, masks)
        return 0
    return int(_pool_all_codes(table, ids, offsets, first, end, target, table.dim))


@serial
def _pool_all_codes(
    table: TablePlaces, ids: Ids, offsets: int, first: int, end: int, target: int, target_stride: int
) -> int:
    bad = 0
    for bag in range(first, end):
        row, begin, stop = _bag_at(table, offsets, bag)
        bad |= _pool_codes(table, ids, row, begin, stop, target + 4 * (bag - first) * target_stride)
    return bad


@inlined
def _bag_at(table: TablePlaces, offsets: int, bag: int) -> tuple[int, int, int]:
    """Returns the row of ids in which a bag lies, and its slots."""
    if offsets:
        return 0, long_at(offsets, bag), long_at(offsets, bag + 1)
    return bag, table.first_slot, table.first_slot + table.num_slots


@inlined
def _parts(table: TablePlaces, count: int) -> tuple[np.float32, np.float32]:
    """Returns what the offset of a table adds to the sum of so many rows, and the share of one in a mean."""
    offset, share = np.float32(0), np.float32(1)
    if table.offset:
        offset = float_at(table.offset, 0) * np.float32(count)
    if table.is_mean and count > 1:
        share = share / np.float32(count)
    return offset, share


@serial
def _pool_codes(table: TablePlaces, ids: Ids, row: int, first: int, end: int, target: int) -> int:
    count, bad = 0, 0
    for slot in range(first, end):
        count += 1 if id_at(ids, row, slot) >= 0 else 0
    offset, share = _parts(table, count)
    for k in range(0, table.dim, LANES):
        # Of whole numbers, so that the sum is exact up to 2^24.
        codes = splat(np.float32(0))
        for slot in range(first, end):
            number = id_at(ids, row, slot)
            place = place_of_row(table, number) if number >= 0 else 0
            if place > 0:
                codes = add(codes, load_codes_of_bits(place + k * table.bits // 8, table.bits, table.dim - k))
            bad |= 1 if place < 0 else 0
        value = add(multiply(codes, splat(float_at(table.scale, 0))), splat(offset))
        store_part(target, k, multiply(value, splat(share)), table.dim - k)
    return bad


def _pooling(width: int, *, is_part: bool = False) -> Callable[..., None]:
    """Makes the pooling of the bytes of rows from `k` on: as many as a register has, or fewer if they end the row."""
    registers = nibbles_of(width, is_part=is_part)
    none, every_byte, load, load_some, lower_of, upper_of, plus, store_sums = registers

    @inlined
    def add_row(
        table: TablePlaces, k: int, place: int, slot: int, is_long: int, may_be_none: int, mask: Any, excess: Any
    ) -> tuple[Any, Any, int]:
        number = long_at(place, slot) if is_long else int_at(place, slot)
        if may_be_none and number < 0:
            return none(), none(), 0
        at = table.codes + k + number * table.row_bytes
        packed = load_some(at, excess, table.row_bytes - k) if is_part else load(at, excess)
        return lower_of(packed, mask), upper_of(packed, mask), 1

    @inlined
    def pool(
        table: TablePlaces,
        k: int,
        ids: Ids,
        is_long: int,
        may_be_none: int,
        offsets: int,
        first: int,
        end: int,
        target: int,
        target_stride: int,
        masks: int,
    ) -> None:
        mask, excess, dims = every_byte(masks), every_byte(masks >> 8), table.dim - 2 * k
        scale, one, nothing = float_at(table.scale, 0), np.float32(1), np.float32(0)
        stride = ids.slot_stride if may_be_none else 1
        out = target + 8 * k
        for bag in range(first, end):
            row, at, stop = _bag_at(table, offsets, bag)
            place = ids.place + row * ids.row_stride * (8 if is_long else 4)
            count, adds = 0, 0
            while True:
                until = min(at + MOST_ROWS, stop)
                lower, upper, rows = none(), none(), 0
                for slot in range(at, until):
                    more = add_row(table, k, place, slot * stride, is_long, may_be_none, mask, excess)
                    lower, upper, rows = plus(lower, more[0]), plus(upper, more[1]), rows + more[2]
                at, count = until, count + rows
                if at >= stop:
                    break
                store_sums(out, dims, lower, upper, rows, adds, one, nothing, one)
                adds = 1
            offset, share = _parts(table, count)
            store_sums(out, dims, lower, upper, rows, adds, scale, offset, share)
            out += 4 * target_stride

    return pool


def _pooling_pairs(width: int) -> Callable[..., None]:
    """Makes the pooling of `width` bytes of rows from `k` on, two rows at a time, of bags that are given by offsets."""
    both, load_two, load_one = nibble_pairs_of(width)
    none, every_byte, _, _, lower_of, upper_of, plus, store_sums = both

    @inlined
    def pool(
        table: TablePlaces, k: int, ids: Ids, is_long: int, offsets: int, first: int, end: int, target: int, masks: int
    ) -> None:
        mask, excess, dims, size = every_byte(masks), every_byte(masks >> 8), table.dim - 2 * k, 8 if is_long else 4
        scale, one, nothing = float_at(table.scale, 0), np.float32(1), np.float32(0)
        codes, out, at = table.codes + k, target + 8 * k, long_at(offsets, first)
        for bag in range(first, end):
            begin, stop, adds = at, long_at(offsets, bag + 1), 0
            while True:
                until = min(at + 2 * MOST_ROWS, stop)
                lower, upper, rows, place = none(), none(), until - at, ids.place + size * at
                for pair in range(0, rows - 1, 2):
                    number = long_at(place, pair) if is_long else int_at(place, pair)
                    other = long_at(place, pair + 1) if is_long else int_at(place, pair + 1)
                    packed = load_two(codes + number * table.row_bytes, codes + other * table.row_bytes, excess)
                    lower, upper = plus(lower, lower_of(packed, mask)), plus(upper, upper_of(packed, mask))
                if rows & 1:
                    number = long_at(place, rows - 1) if is_long else int_at(place, rows - 1)
                    packed = load_one(codes + number * table.row_bytes, excess)
                    lower, upper = plus(lower, lower_of(packed, mask)), plus(upper, upper_of(packed, mask))
                at = until
                if at >= stop:
                    break
                store_sums(out, dims, lower, upper, rows, adds, one, nothing, one)
                adds = 1
            offset, share = _parts(table, stop - begin)
            store_sums(out, dims, lower, upper, rows, adds, scale, offset, share)
            out += 4 * table.dim

    return pool


_pool_pairs_8, _pool_pairs_16, _pool_pairs_32 = (_pooling_pairs(width) for width in WIDTHS[:3])
_pool_8, _pool_16, _pool_32, _pool_64 = (_pooling(width) for width in WIDTHS)
_pool_part = _pooling(WIDTHS[0], is_part=True)


@inlined
def _pool_rows_in_pairs(
    table: TablePlaces, ids: Ids, is_long: int, offsets: int, first: int, end: int, target: int, masks: int
) -> None:
    """Pools rows that fill half of a register."""
    if table.dim == 16:
        _pool_pairs_8(table, 0, ids, is_long, offsets, first, end, target, masks)
    elif table.dim == 32:
        _pool_pairs_16(table, 0, ids, is_long, offsets, first, end, target, masks)
    else:
        _pool_pairs_32(table, 0, ids, is_long, offsets, first, end, target, masks)


@inlined
def _pool_nibbles(
    table: TablePlaces,
    ids: Ids,
    is_long: int,
    may_be_none: int,
    offsets: int,
    first: int,
    end: int,
    target: int,
    target_stride: int,
    masks: int,
) -> None:
    k, size = 0, table.dim // 2  # bytes of two codes each: whole registers write all of their floats
    while size - k >= 64:
        _pool_64(table, k, ids, is_long, may_be_none, offsets, first, end, target, target_stride, masks)
        k += 64
    if size - k >= 32:
        _pool_32(table, k, ids, is_long, may_be_none, offsets, first, end, target, target_stride, masks)
        k += 32
    if size - k >= 16:
        _pool_16(table, k, ids, is_long, may_be_none, offsets, first, end, target, target_stride, masks)
        k += 16
    if size - k >= 8:
        _pool_8(table, k, ids, is_long, may_be_none, offsets, first, end, target, target_stride, masks)
        k += 8
    if table.row_bytes > k:
        _pool_part(table, k, ids, is_long, may_be_none, offsets, first, end, target, target_stride, masks)
