"""Quantizes matrices row by row: the weights of layers with a scale per output row (paper 4.2), tables to codes."""

from typing import Any

import numpy as np

from .bfloat import store_number
from .compiled import inlined, kernel, serial
from .memory import float_at, long_at, set_float
from .scan import largest_magnitude
from .threads import on_all_threads
from .vector import LANES, load_part, multiply, round_clamp, splat
from .words import as_float, store_codes

COPY_LONGS = 6
"""Of one item of `copy_rows`, as int64: source f32[rows, columns], target, rows, columns, bits, target is BF16."""

_SMALLEST_STEP = np.float32(1e-8)


@inlined
def _uniform_step(absmax: np.float32, limit: np.float32) -> np.float32:
    """The step under which max|W| is code `limit`; a kernel divides by it."""
    step = absmax / limit
    if step < _SMALLEST_STEP:  # false for NaN, which stays
        step = _SMALLEST_STEP
    return step


@kernel
def uniform_steps(absmax: int, steps: int, count: int, limit: np.float32) -> bool:
    """absmax and steps: f32[count]. Whether all of absmax is finite."""
    finite = True
    for i in range(count):
        value = float_at(absmax, i)
        set_float(steps, i, _uniform_step(value, limit))
        finite &= value < np.inf  # false for NaN
    return finite


@kernel
def copy_rows(items: int, num_items: int, unquantized: int) -> None:
    """items: int64[num_items, COPY_LONGS], of about the same size; `unquantized`: the bits that mean so."""
    on_all_threads(num_items, _copy_item, (items, unquantized))


@serial
def _copy_item(items: int, unquantized: int, number: int) -> None:
    item = items + 8 * COPY_LONGS * number
    source, target = long_at(item, 0), long_at(item, 1)
    rows, columns, bits, is_bf16 = long_at(item, 2), long_at(item, 3), long_at(item, 4), long_at(item, 5)
    if bits == unquantized:
        for k in range(0, rows * columns, LANES):
            count = rows * columns - k
            store_number(target, k, load_part(source, k, count), count, is_bf16)
        return
    limit = np.float32((1 << (bits - 1)) - 1)
    for row in range(rows):
        first = row * columns
        step = _uniform_step(as_float(largest_magnitude(source, first, first + columns)), limit)
        for k in range(0, columns, LANES):
            codes = _codes(source, first + k, columns - k, np.float32(1) / step, limit)
            store_number(target, first + k, multiply(codes, splat(step)), columns - k, is_bf16)


@inlined
def _codes(source: int, at: int, count: int, inverse: np.float32, limit: np.float32) -> Any:
    return round_clamp(multiply(load_part(source, at, count), splat(inverse)), -limit - np.float32(1), limit)


@kernel
def quantize_rows(
    weight: int, rows: int, columns: int, step: np.float32, limit: np.float32, codes: int, code_bytes: int
) -> None:
    """codes int8 or int16 [N, D], by code_bytes."""
    inverse = np.float32(1) / step
    on_all_threads(rows, _quantize_row, (weight, columns, inverse, limit, codes, code_bytes))


@serial
def _quantize_row(
    weight: int, columns: int, inverse: np.float32, limit: np.float32, codes: int, code_bytes: int, row: int
) -> None:
    for k in range(0, columns, LANES):
        at = row * columns + k
        store_codes(codes, at, _codes(weight, at, columns - k, inverse, limit), columns - k, code_bytes)
