"""Quantizes matrices row by row: the weights of a layer with a scale per output row (paper 4.2), tables to codes."""

import numpy as np
from numba import prange

from .compiled import parallel
from .scan import largest_magnitude
from .vector import LANES, as_float, load_part, multiply, round_clamp, splat, store_codes, store_part


@parallel
def fake_quantize_rows(
    weight: int, rows: int, columns: int, limit: np.float32, smallest_step: np.float32, out: int
) -> None:
    """Per row of weight f32[O, I]: step = max|w| / limit, codes from -limit - 1 to limit, times step."""
    for row in prange(rows):
        source, target = weight + 4 * row * columns, out + 4 * row * columns
        step = as_float(largest_magnitude(source, 0, columns)) / limit
        if step < smallest_step:  # false for NaN, which stays
            step = smallest_step
        inverse = np.float32(1) / step
        for k in range(0, columns, LANES):
            scaled = multiply(load_part(source, k, columns - k), splat(inverse))
            codes = round_clamp(scaled, -limit - np.float32(1), limit)
            store_part(target, k, multiply(codes, splat(step)), columns - k)


@parallel
def quantize_rows(
    weight: int, rows: int, columns: int, step: np.float32, limit: np.float32, codes: int, code_bytes: int
) -> None:
    """codes int8 or int16 [N, D], by code_bytes."""
    inverse = np.float32(1) / step
    for row in prange(rows):
        for k in range(0, columns, LANES):
            at = row * columns + k
            scaled = multiply(load_part(weight, at, columns - k), splat(inverse))
            store_codes(codes, at, round_clamp(scaled, -limit - np.float32(1), limit), columns - k, code_bytes)
