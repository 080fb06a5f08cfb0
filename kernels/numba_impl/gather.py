"""Looks up rows, fake-quantizes and pools them (paper 3.1: only what was looked up is quantized)."""

from typing import NamedTuple

import numpy as np
from numba import prange
from numpy.typing import NDArray

from .compiled import parallel, serial
from .vector import (
    LANES,
    add,
    divide,
    load_part,
    multiply,
    prefetch,
    round_clamp,
    splat,
    store_part,
)

_SAMPLES_PER_ITEM = 64
_AHEAD = 16


class Quantizer(NamedTuple):
    """One step per table; codes from low to high; not enabled: FP32."""

    step: NDArray[np.float32]  # [T]
    low: np.float32
    high: np.float32
    enabled: bool


@serial
def prefetch_row(weight: NDArray[np.float32], row: int) -> None:
    """All cache lines of a row, if they are few; the hardware follows long ones by itself."""
    dim = weight.shape[1]
    for k in range(0, min(dim, 128), 16):
        prefetch(weight, row * dim + k)


@parallel
def gather_one_hot(
    weight: NDArray[np.float32],
    first_row: NDArray[np.int64],
    ids: NDArray[np.int32],
    quantizer: Quantizer,
    out: NDArray[np.float32],
) -> None:
    """ids [T, B]; out [B, F, D], slots 1 and up are written."""
    num_tables, batch = ids.shape
    num_chunks = (batch + _SAMPLES_PER_ITEM - 1) // _SAMPLES_PER_ITEM
    # Chunks outside, tables inside: every thread meets large and small tables alike.
    for item in prange(num_chunks * num_tables):
        chunk, table = item // num_tables, item % num_tables
        start = chunk * _SAMPLES_PER_ITEM
        end = min(batch, start + _SAMPLES_PER_ITEM)
        _gather_run(weight, first_row[table], ids[table], start, end, quantizer, table, out)


@serial
def _gather_run(
    weight: NDArray[np.float32],
    first_row: int,
    ids: NDArray[np.int32],
    start: int,
    end: int,
    quantizer: Quantizer,
    table: int,
    out: NDArray[np.float32],
) -> None:
    """Samples start to end of one table."""
    dim, num_features = weight.shape[1], out.shape[1]
    step = quantizer.step[table]
    inverse = np.float32(1) / step
    for b in range(start, min(start + _AHEAD, end)):
        prefetch_row(weight, first_row + ids[b])
    for b in range(start, end):
        if b + _AHEAD < end:
            prefetch_row(weight, first_row + ids[b + _AHEAD])
        source, target = (first_row + ids[b]) * dim, (b * num_features + 1 + table) * dim
        for k in range(0, dim, LANES):
            row = load_part(weight, source + k, dim - k)
            if quantizer.enabled:
                codes = round_clamp(multiply(row, splat(inverse)), quantizer.low, quantizer.high)
                row = multiply(codes, splat(step))
            store_part(out, target + k, row, dim - k)


@parallel
def gather_multi_hot(
    weight: NDArray[np.float32],
    first_row: NDArray[np.int64],
    ids: NDArray[np.int32],
    offsets: NDArray[np.int64],
    mean: bool,
    quantizer: Quantizer,
    out: NDArray[np.float32],
) -> None:
    """ids [N], offsets [T * B + 1]; out [B, F, D], slots 1 and up are written."""
    batch, num_tables = out.shape[0], out.shape[1] - 1
    num_chunks = (batch + _SAMPLES_PER_ITEM - 1) // _SAMPLES_PER_ITEM
    for item in prange(num_chunks * num_tables):
        chunk, table = item // num_tables, item % num_tables
        start = table * batch + chunk * _SAMPLES_PER_ITEM
        end = table * batch + min(batch, (chunk + 1) * _SAMPLES_PER_ITEM)
        for bag in range(start, end):
            for i in range(offsets[bag] + _AHEAD, min(offsets[bag + 1] + _AHEAD, offsets[end])):
                prefetch_row(weight, first_row[table] + ids[i])
            bag_ids = ids[offsets[bag] : offsets[bag + 1]]
            _pool_bag(weight, first_row[table], bag_ids, mean, quantizer, table, out, bag - table * batch)


@serial
def _pool_bag(
    weight: NDArray[np.float32],
    first_row: int,
    ids: NDArray[np.int32],
    mean: bool,
    quantizer: Quantizer,
    table: int,
    out: NDArray[np.float32],
    sample: int,
) -> None:
    """The rows of one bag: each quantized, then summed in the order of the ids."""
    dim = weight.shape[1]
    target = (sample * out.shape[1] + 1 + table) * dim
    step = quantizer.step[table]
    inverse = np.float32(1) / step
    for k in range(0, dim, LANES):
        pooled = splat(np.float32(0))
        for row_id in ids:
            row = load_part(weight, (first_row + row_id) * dim + k, dim - k)
            if quantizer.enabled:
                codes = round_clamp(multiply(row, splat(inverse)), quantizer.low, quantizer.high)
                row = multiply(codes, splat(step))
            pooled = add(pooled, row)
        if mean and ids.size > 0:
            pooled = divide(pooled, splat(np.float32(ids.size)))
        store_part(out, target + k, pooled, dim - k)
