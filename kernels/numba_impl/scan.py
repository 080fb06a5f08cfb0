"""max|W| by reading everything: of every table, and of every row of a layer's weight that is then quantized."""

import numpy as np
from numba import prange
from numpy.typing import NDArray

from .compiled import parallel, serial
from .vector import (
    LANES,
    address,
    as_float,
    larger,
    largest,
    load,
    load_part,
    magnitude,
    multiply,
    no_words,
    prefetch,
    round_clamp,
    splat,
    store_part,
)

_FLOATS_PER_ITEM = 1 << 16
_AHEAD_FLOATS = 1024


@serial
def largest_magnitude(values: NDArray[np.float32], start: int, end: int) -> np.int32:
    """Bits of the largest |value| of flat elements start to end; NaN is above all."""
    m0 = m1 = m2 = m3 = no_words()
    i = start
    while i + 4 * LANES <= end:
        prefetch(values, i + _AHEAD_FLOATS)
        prefetch(values, i + _AHEAD_FLOATS + 2 * LANES)
        m0 = larger(m0, magnitude(load(values, i)))
        m1 = larger(m1, magnitude(load(values, i + LANES)))
        m2 = larger(m2, magnitude(load(values, i + 2 * LANES)))
        m3 = larger(m3, magnitude(load(values, i + 3 * LANES)))
        i += 4 * LANES
    while i < end:
        m0 = larger(m0, magnitude(load_part(values, i, end - i)))
        i += LANES
    return largest(larger(larger(m0, m1), larger(m2, m3)))


@parallel
def scan_tables(weight: NDArray[np.float32], first_row: NDArray[np.int64], bits: NDArray[np.int32]) -> None:
    """bits [T]: the pattern of max|W| of each table."""
    dim, num_tables = weight.shape[1], first_row.size - 1
    first_item = np.zeros(num_tables + 1, np.int64)
    for t in range(num_tables):
        floats = (first_row[t + 1] - first_row[t]) * dim
        first_item[t + 1] = first_item[t] + (floats + _FLOATS_PER_ITEM - 1) // _FLOATS_PER_ITEM
    found = np.zeros(first_item[num_tables], np.int32)
    for item in prange(first_item[num_tables]):
        t = np.searchsorted(first_item, item, side="right") - 1
        start = first_row[t] * dim + (item - first_item[t]) * _FLOATS_PER_ITEM
        found[item] = largest_magnitude(weight, start, min(start + _FLOATS_PER_ITEM, first_row[t + 1] * dim))
    for t in range(num_tables):
        bits[t] = 0
        for item in range(first_item[t], first_item[t + 1]):
            bits[t] = max(bits[t], found[item])


@parallel
def fake_quantize_rows(
    weight: NDArray[np.float32], limit: np.float32, smallest_step: np.float32, out: NDArray[np.float32]
) -> None:
    """Per row of weight [O, I]: step = max|w| / limit, codes from -limit - 1 to limit."""
    rows, columns = weight.shape
    for row in prange(rows):
        start = row * columns
        step = as_float(largest_magnitude(weight, start, start + columns)) / limit
        if step < smallest_step:  # false for NaN, which stays
            step = smallest_step
        inverse = np.float32(1) / step
        source, target = address(weight, start), address(out, start)
        for k in range(0, columns, LANES):
            scaled = multiply(load_part(source, k, columns - k), splat(inverse))
            codes = round_clamp(scaled, -limit - np.float32(1), limit)
            store_part(target, k, multiply(codes, splat(step)), columns - k)


@parallel
def quantize_rows(
    weight: NDArray[np.float32], step: np.float32, limit: np.float32, codes: NDArray[np.signedinteger]
) -> None:
    """codes [N, D], int8 or int16."""
    inverse = np.float32(1) / step
    rows, columns = weight.shape
    for row in prange(rows):
        for k in range(columns):
            value = np.rint(weight[row, k] * inverse)
            codes[row, k] = int(min(max(value, -limit - np.float32(1)), limit))
