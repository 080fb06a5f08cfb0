"""Registers of packed codes of 4 bits for numba kernels: rows are summed as they are packed, and widened once.

A byte holds two codes, two's complement, the lower bits first. With 8 added to each they are 0 to 15, and a byte of a
register of sums holds up to `MOST_ROWS` of them: six instructions add a row of up to 128 codes, or two rows of up to 64
each that lie side by side (`simd_nibble_pairs`). Registers have 8 to 64 bytes, and a load reads exactly so many: one
that crosses the end of a cache line waits for two lines, even where a mask leaves the second one out. A row that is not
summed takes two instructions for every LANES codes: a shift, and a permutation of a register that holds what each of
the 16 codes stands for.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir
from numba.core import types
from numba.core.datamodel import models
from numba.extending import register_model

from .memory import Codegen, call, element_pointer, intrinsic
from .simd import (
    FLOAT_VECTOR,
    FLOATS,
    LANES,
    WORD_VECTOR,
    every_lane,
    first_lanes,
    masked_load,
    masked_store,
    same_words,
)

WIDTHS = (8, 16, 32, 64)
"""Bytes of a register."""

MOST_ROWS = 16
"""Rows whose codes a register of sums holds."""

NIBBLE_MASKS = 0x880F
"""Two bytes that kernels unpack INT4 codes with, as one number: 0x0F keeps a nibble, 0x88 is the excess of two."""

NIBBLE_BITS = 4

_EXCESS = 8
_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))


class BytesType(types.Type):
    """A numba type whose values are registers of bytes."""

    def __init__(self, width: int) -> None:
        self.vector = ir.VectorType(_I8, width)
        super().__init__(f"Bytes{width}")


@register_model(BytesType)
class _BytesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: BytesType) -> None:
        super().__init__(manager, kind, kind.vector)


class Nibbles(NamedTuple):
    """The operations on rows of INT4 codes that registers of one width offer to kernels."""

    none: Callable[[], Any]
    """none(): a register of zeros."""
    every_byte: Callable[[int], Any]
    """every_byte(value): a register of the lowest byte of an int64.

    Of a value that LLVM does not know: constants it reads from memory again for each row.
    """
    load: Callable[[int, Any], Any]
    """load(place, excess): the packed codes at an address, and 8 more each."""
    load_part: Callable[[int, Any, int], Any]
    """load_part(place, excess, count): the same of the first `count` bytes; those beyond are not touched."""
    lower: Callable[[Any, Any], Any]
    """lower(packed, mask): the codes of lower bits, those of even dimensions."""
    upper: Callable[[Any, Any], Any]
    """upper(packed, mask): the codes of upper bits, those of odd dimensions."""
    plus: Callable[[Any, Any], Any]
    """plus(a, b): sums of bytes."""
    store: Callable[..., None]
    """store(place, dims, lower, upper, rows, adds, scale, offset, share): writes f32[dims] of the sums of so many rows.

    ((sums + adds * what stands there) * scale + offset) * share, each rounded; `adds` is 0 or 1.
    """


def nibbles_of(width: int, *, is_part: bool = False, num_halves: int = 1) -> Nibbles:
    """Makes the functions for registers of so many bytes, all of which are used unless `is_part`.

    `num_halves`: 2 where `store` adds the upper half of the sums to the lower one.
    """
    kind = BytesType(width)

    @intrinsic
    def none(typing: Any) -> tuple[Any, Codegen]:
        return kind(), lambda context, builder, signature, args: ir.Constant(kind.vector, [0] * width)

    @intrinsic
    def every_byte(typing: Any, value: Any) -> tuple[Any, Codegen]:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            return _every(builder, builder.trunc(args[0], _I8), width)

        return kind(types.int64), codegen

    @intrinsic
    def plus(typing: Any, a: Any, b: Any) -> tuple[Any, Codegen]:
        return kind(kind, kind), lambda context, builder, signature, args: builder.add(*args)

    @intrinsic
    def store(
        typing: Any,
        place: Any,
        dims: Any,
        lower: Any,
        upper: Any,
        rows: Any,
        adds: Any,
        scale: Any,
        offset: Any,
        share: Any,
    ) -> tuple[Any, Codegen]:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            _store_sums(builder, width, is_part, num_halves, args)
            return context.get_dummy_value()

        longs, floats = types.int64, types.float32
        return types.void(longs, longs, kind, kind, longs, longs, floats, floats, floats), codegen

    return Nibbles(none, every_byte, *_loads(kind), _half(kind, 0), _half(kind, NIBBLE_BITS), plus, store)


def _loads(kind: BytesType) -> tuple[Callable[[int, Any], Any], Callable[[int, Any, int], Any]]:
    @intrinsic
    def load(typing: Any, place: Any, excess: Any) -> tuple[Any, Codegen]:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            packed = builder.load(element_pointer(builder, args[0], _I64(0), kind.vector, 1), align=1)
            return builder.xor(packed, args[1])

        return kind(types.int64, kind), codegen

    @intrinsic
    def load_part(typing: Any, place: Any, excess: Any, count: Any) -> tuple[Any, Codegen]:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            return builder.xor(_load_first_bytes(builder, args[0], args[2], kind.vector), args[1])

        return kind(types.int64, kind, types.int64), codegen

    return load, load_part


def _half(kind: BytesType, shift: int) -> Callable[[Any, Any], Any]:
    @intrinsic
    def operation(typing: Any, packed: Any, mask: Any) -> tuple[Any, Codegen]:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            packed, mask = args
            if shift:
                # Pairs of bytes: no processor shifts single ones, and the mask takes what comes from the neighbour.
                pairs = ir.VectorType(_I16, kind.vector.count // 2)
                by = ir.Constant(pairs, [shift] * pairs.count)
                packed = builder.bitcast(builder.lshr(builder.bitcast(packed, pairs), by), kind.vector)
            return builder.and_(packed, mask)

        return kind(kind, kind), codegen

    return operation


class _CodeValuesType(types.Type):
    """A numba type whose values hold what each code of 4 bits stands for, in the order of their bits."""


_VALUES = ir.VectorType(ir.FloatType(), 1 << NIBBLE_BITS)
_CODE_VALUES = _CodeValuesType("CodeValues")
_CODES_OF_WORD = 32 // NIBBLE_BITS


@register_model(_CodeValuesType)
class _CodeValuesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: _CodeValuesType) -> None:
        super().__init__(manager, kind, _VALUES)


@intrinsic
def code_values(typing: Any, scale: Any, offset: Any) -> tuple[Any, Codegen]:
    """Makes a register of code * scale + offset for all codes, each rounded."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        scale, offset = args
        codes = ir.Constant(_VALUES, [float((code ^ _EXCESS) - _EXCESS) for code in range(_VALUES.count)])
        values = builder.fmul(codes, _every(builder, scale, _VALUES.count))
        moved = builder.fadd(values, _every(builder, offset, _VALUES.count))
        return builder.select(builder.fcmp_ordered("==", offset, ir.Constant(offset.type, 0.0)), values, moved)

    return _CODE_VALUES(types.float32, types.float32), codegen


@intrinsic
def values_at(typing: Any, values: Any, place: Any) -> tuple[Any, Codegen]:
    """Reads LANES codes at an address as what they stand for."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        kind = ir.VectorType(_I32, LANES // _CODES_OF_WORD)
        packed = builder.load(element_pointer(builder, args[1], _I64(0), kind, 1), align=1)
        return _values_of(builder, args[0], packed)

    return FLOATS(_CODE_VALUES, types.int64), codegen


@intrinsic
def values_at_end(typing: Any, values: Any, place: Any, count: Any) -> tuple[Any, Codegen]:
    """Does the same with the first `count` bytes of codes; those beyond are not touched."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        values, place, count = args
        packed = _load_first_bytes(builder, place, count, ir.VectorType(_I8, LANES // 2))
        return _values_of(builder, values, builder.bitcast(packed, ir.VectorType(_I32, LANES // _CODES_OF_WORD)))

    return FLOATS(_CODE_VALUES, types.int64, types.int64), codegen


def _values_of(builder: ir.IRBuilder, values: Any, packed: Any) -> Any:
    """Generates the values of the codes in a vector of words, LANES of them."""
    of_lane = ir.Constant(WORD_VECTOR, [lane // _CODES_OF_WORD for lane in range(LANES)])
    shifts = ir.Constant(WORD_VECTOR, [NIBBLE_BITS * (lane % _CODES_OF_WORD) for lane in range(LANES)])
    # The instructions that permute look at no more bits of a lane than they need: nothing is masked.
    codes = builder.lshr(builder.shuffle_vector(packed, packed, of_lane), shifts)
    if _VALUES.count == LANES:
        return call(builder, "llvm.x86.avx512.permvar.sf.512", FLOAT_VECTOR, [values, codes])
    halves = []
    for first in (0, LANES):
        lanes = ir.Constant(WORD_VECTOR, list(range(first, first + LANES)))
        half = builder.shuffle_vector(values, values, lanes)
        halves.append(call(builder, "llvm.x86.avx2.permps", FLOAT_VECTOR, [half, codes]))
    highest = builder.shl(codes, same_words(32 - NIBBLE_BITS))
    return builder.select(builder.icmp_signed("<", highest, same_words(0)), halves[1], halves[0])


def _load_first_bytes(builder: ir.IRBuilder, place: Any, count: Any, kind: ir.VectorType) -> Any:
    limit = _every(builder, builder.trunc(count, _I32), kind.count)
    mask = builder.icmp_signed("<", ir.Constant(limit.type, list(range(kind.count))), limit)
    pointer = element_pointer(builder, place, _I64(0), kind, 1)
    arguments = [pointer, _I32(1), mask, ir.Constant(kind, [0] * kind.count)]
    return call(builder, f"llvm.masked.load.v{kind.count}i8.p0", kind, arguments)


def _every(builder: ir.IRBuilder, value: Any, width: int) -> Any:
    """Generates a vector of `width` copies."""
    kind = ir.VectorType(value.type, width)
    single = builder.insert_element(ir.Constant(kind, ir.Undefined), value, _I32(0))
    return builder.shuffle_vector(single, single, ir.Constant(ir.VectorType(_I32, width), [0] * width))


def _store_sums(builder: ir.IRBuilder, width: int, is_part: bool, num_halves: int, args: Any) -> None:
    place, dims, lower, upper, rows, adds, scale, offset, share = args
    if num_halves > 1:
        width //= num_halves
    firsts = range(0, 2 * width, LANES)
    masks = [first_lanes(builder, builder.sub(dims, _I64(first))) if is_part else None for first in firsts]

    def load(number: int) -> Any:
        mask = masks[number]
        if mask is not None:
            return masked_load(builder, place, _I64(firsts[number]), mask, FLOAT_VECTOR)
        return builder.load(element_pointer(builder, place, _I64(firsts[number]), FLOAT_VECTOR, 4), align=4)

    def store(number: int, value: Any) -> None:
        mask = masks[number]
        if mask is not None:
            masked_store(builder, place, _I64(firsts[number]), mask, value)
        else:
            builder.store(value, element_pointer(builder, place, _I64(firsts[number]), FLOAT_VECTOR, 4), align=4)

    kind = _I8
    if num_halves > 1:
        kind = _I16
        lower, upper = (_sum_of_halves(builder, sums, width) for sums in (lower, upper))
    # The sum of 16 codes fits into a signed byte, and bytes wrap around: exact without the 8 that each had more.
    excess = _every(builder, builder.trunc(builder.mul(rows, _I64(_EXCESS)), kind), width)
    order = [dim // 2 + width * (dim % 2) for dim in range(2 * width)]
    order = ir.Constant(ir.VectorType(_I32, 2 * width), order)
    sums = builder.shuffle_vector(builder.sub(lower, excess), builder.sub(upper, excess), order)
    values = []
    for first in firsts:
        lanes = ir.Constant(ir.VectorType(_I32, LANES), list(range(first, first + LANES)))
        words = builder.sext(builder.shuffle_vector(sums, sums, lanes), WORD_VECTOR)
        values.append(builder.sitofp(words, FLOAT_VECTOR))
    values = _unless(
        builder,
        builder.icmp_signed("!=", adds, _I64(0)),
        values,
        lambda values: [builder.fadd(load(number), value) for number, value in enumerate(values)],
    )
    factor = every_lane(builder, scale)
    values = [builder.fmul(value, factor) for value in values]
    is_plain = builder.and_(
        builder.fcmp_ordered("==", offset, ir.Constant(offset.type, 0.0)),
        builder.fcmp_ordered("==", share, ir.Constant(share.type, 1.0)),
    )

    def shared(values: list[Any]) -> list[Any]:
        offsets, shares = every_lane(builder, offset), every_lane(builder, share)
        return [builder.fmul(builder.fadd(value, offsets), shares) for value in values]

    for number, value in enumerate(_unless(builder, builder.not_(is_plain), values, shared)):
        store(number, value)


def _sum_of_halves(builder: ir.IRBuilder, sums: Any, width: int) -> Any:
    """Adds the upper half of bytes from 0 to 255 to the lower one, as numbers of two bytes."""
    halves = []
    for first in (0, width):
        lanes = ir.Constant(ir.VectorType(_I32, width), list(range(first, first + width)))
        halves.append(builder.zext(builder.shuffle_vector(sums, sums, lanes), ir.VectorType(_I16, width)))
    return builder.add(*halves)


def _unless(
    builder: ir.IRBuilder, is_rare: Any, values: list[Any], change: Callable[[list[Any]], list[Any]]
) -> list[Any]:
    """Generates a branch that changes the values in a rare case."""
    before = builder.block
    with builder.if_then(is_rare, likely=False):
        changed, after = change(values), builder.block
    merged = []
    for value, other in zip(values, changed, strict=True):
        merged.append(builder.phi(FLOAT_VECTOR))
        merged[-1].add_incoming(value, before)
        merged[-1].add_incoming(other, after)
    return merged
