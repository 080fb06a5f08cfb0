"""Looks up rows, fake-quantizes and pools them (paper 3.1: only what was looked up is quantized)."""

from typing import Any, NamedTuple

import numpy as np

from ..jit.arena import FP32_ROWS, Arena, prefetch_row, prefetch_stored
from ..jit.compile import inlined, serial, thorough_kernel
from ..jit.memory import float_at, int_at, long_at
from ..jit.simd import LANES, add, divide, load, load_part, multiply, round_clamp, splat, store_number
from ..jit.threads import on_all_threads
from .lookups import Pooled
from .stored_rows import load_stored

_SAMPLES_PER_ITEM = 32
_AHEAD = 16
_TABLES_AHEAD = 2
_FOUR = 4 * LANES


class Quantizer(NamedTuple):
    """One scale per table; codes from low to high."""

    scale: int  # address of f32[T]
    low: np.float32
    high: np.float32
    enabled: int  # 0: FP32


@inlined
def _quantized(values: Any, quantizer: Quantizer, inverse: np.float32, scale: np.float32) -> Any:
    if quantizer.enabled:
        codes = round_clamp(multiply(values, splat(inverse)), quantizer.low, quantizer.high)
        values = multiply(codes, splat(scale))
    return values


@thorough_kernel
def gather_one_hot(arena: Arena, ids: int, batch: int, quantizer: Quantizer, out: Pooled) -> None:
    """Looks up one row a bag. ids: int32[T, B]; out [B, 1 + T, D], slots 1 and up are written."""
    num_chunks = (batch + _SAMPLES_PER_ITEM - 1) // _SAMPLES_PER_ITEM
    on_all_threads(num_chunks, _gather_samples, (arena, ids, batch, quantizer, out))


@serial
def _gather_samples(arena: Arena, ids: int, batch: int, quantizer: Quantizer, out: Pooled, chunk: int) -> None:
    """Gathers a few samples of all tables: what they write stays in the core's own cache until it is whole."""
    start = chunk * _SAMPLES_PER_ITEM
    end = min(batch, start + _SAMPLES_PER_ITEM)
    for table in range(min(_TABLES_AHEAD, arena.num_tables)):
        for b in range(start, end):
            prefetch_stored(arena, long_at(arena.first_row, table) + int_at(ids, table * batch + b))
    for table in range(arena.num_tables):
        # A copy of the loops for each precision: they are too short for a decision at every store.
        if arena.form != FP32_ROWS:
            _gather_stored(arena, table, ids, batch, start, end, quantizer, out)
        elif out.is_bf16:
            _gather_table(arena, table, ids, batch, start, end, quantizer, out.place, 1)
        else:
            _gather_table(arena, table, ids, batch, start, end, quantizer, out.place, 0)


@inlined
def _gather_table(
    arena: Arena, table: int, ids: int, batch: int, start: int, end: int, quantizer: Quantizer, out: int, is_bf16: int
) -> None:
    dim, num_tables = arena.dim, arena.num_tables
    stride = (1 + num_tables) * dim
    scale = float_at(quantizer.scale, table)
    inverse = np.float32(1) / scale
    first_row, of_table = long_at(arena.first_row, table), table * batch
    ahead = min(table + _TABLES_AHEAD, num_tables - 1)
    first_ahead, of_ahead = long_at(arena.first_row, ahead), ahead * batch
    for b in range(start, end):
        prefetch_row(arena.weight, first_ahead + int_at(ids, of_ahead + b), dim)
        source = arena.weight + 4 * (first_row + int_at(ids, of_table + b)) * dim
        target, whole = b * stride + (1 + table) * dim, dim // _FOUR * _FOUR
        for k in range(0, whole, _FOUR):
            # All asked for before the first is used: what is not in the cache by now arrives together.
            v0, v1 = load(source, k), load(source, k + LANES)
            v2, v3 = load(source, k + 2 * LANES), load(source, k + 3 * LANES)
            store_number(out, target + k, _quantized(v0, quantizer, inverse, scale), LANES, is_bf16)
            store_number(out, target + k + LANES, _quantized(v1, quantizer, inverse, scale), LANES, is_bf16)
            store_number(out, target + k + 2 * LANES, _quantized(v2, quantizer, inverse, scale), LANES, is_bf16)
            store_number(out, target + k + 3 * LANES, _quantized(v3, quantizer, inverse, scale), LANES, is_bf16)
        for k in range(whole, dim, LANES):
            values = _quantized(load_part(source, k, dim - k), quantizer, inverse, scale)
            store_number(out, target + k, values, dim - k, is_bf16)


@serial
def _gather_stored(
    arena: Arena, table: int, ids: int, batch: int, start: int, end: int, quantizer: Quantizer, out: Pooled
) -> None:
    """Does what `_gather_table` does with rows of fewer bits."""
    dim, num_tables = arena.dim, arena.num_tables
    scale = float_at(quantizer.scale, table)
    inverse = np.float32(1) / scale
    first_row, of_table = long_at(arena.first_row, table), table * batch
    ahead = min(table + _TABLES_AHEAD, num_tables - 1)
    first_ahead, of_ahead = long_at(arena.first_row, ahead), ahead * batch
    for b in range(start, end):
        prefetch_stored(arena, first_ahead + int_at(ids, of_ahead + b))
        row, target = first_row + int_at(ids, of_table + b), (b * (1 + num_tables) + 1 + table) * dim
        for k in range(0, dim, LANES):
            values = _quantized(load_stored(arena, row, k, dim - k), quantizer, inverse, scale)
            store_number(out.place, target + k, values, dim - k, out.is_bf16)


@thorough_kernel
def gather_multi_hot(
    arena: Arena, ids: int, offsets: int, batch: int, mean: int, quantizer: Quantizer, out: Pooled
) -> None:
    """Pools bags of rows. ids: int32[N]; offsets: int64[T * B + 1]; out [B, 1 + T, D], slots 1 and up are written."""
    num_chunks = (batch + _SAMPLES_PER_ITEM - 1) // _SAMPLES_PER_ITEM
    bags = (arena, ids, offsets, batch, mean, quantizer, out)
    on_all_threads(num_chunks * arena.num_tables, _pool_samples, bags)


@serial
def _pool_samples(
    arena: Arena, ids: int, offsets: int, batch: int, mean: int, quantizer: Quantizer, out: Pooled, item: int
) -> None:
    """Pools the bags of a few samples in one table."""
    chunk, table = item // arena.num_tables, item % arena.num_tables
    first_row = long_at(arena.first_row, table)
    start = chunk * _SAMPLES_PER_ITEM
    end = min(batch, start + _SAMPLES_PER_ITEM)
    last = long_at(offsets, table * batch + end)
    for sample in range(start, end):
        bag = table * batch + sample
        begin, stop = long_at(offsets, bag), long_at(offsets, bag + 1)
        for i in range(begin + _AHEAD, min(stop + _AHEAD, last)):
            prefetch_stored(arena, first_row + int_at(ids, i))
        _pool_bag(arena, ids + 4 * begin, stop - begin, mean, quantizer, table, out, sample)


@serial
def _pool_bag(
    arena: Arena, ids: int, length: int, mean: int, quantizer: Quantizer, table: int, out: Pooled, sample: int
) -> None:
    """Pools the rows of one bag: each quantized, then summed in the order of the ids."""
    dim, first_row = arena.dim, long_at(arena.first_row, table)
    target = (sample * (1 + arena.num_tables) + 1 + table) * dim
    scale = float_at(quantizer.scale, table)
    inverse = np.float32(1) / scale
    for k in range(0, dim, LANES):
        pooled = splat(np.float32(0))
        for i in range(length):
            values = load_stored(arena, first_row + int_at(ids, i), k, dim - k)
            pooled = add(pooled, _quantized(values, quantizer, inverse, scale))
        if mean and length > 0:
            pooled = divide(pooled, splat(np.float32(length)))
        store_number(out.place, target + k, pooled, dim - k, out.is_bf16)
