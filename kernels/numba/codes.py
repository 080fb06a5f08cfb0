"""Integer codes: of gradients on a wire (paper 3.3, B.1), of the rows of a table, two of 4 bits in a byte.

Codes on a wire are int8, int16, or integers in FP32 containers (the paper's wire); `code_bytes` 1, 2 or 4 tells which.
Every container holds the same integers, so that what is summed does not depend on it.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..jit.compile import inlined, kernel, serial
from ..jit.memory import float_at, long_at, prefetch
from ..jit.simd import LANES, divide, load, load_part, multiply, round_clamp, splat, store_part
from ..jit.simd_integers import FP32_CODE_BYTES, store_codes
from ..jit.threads import on_all_threads

ROWS_PER_ITEM = 512
_AHEAD_FLOATS = 512


@kernel
def quantize_tables(
    values: int, pointer: int, num_tables: int, dim: int, scales: int, limit: np.float32, codes: int, code_bytes: int
) -> None:
    """Writes codes [N, D] = values f32[N, D] over their table's scale f32[T], kept within +-limit.

    pointer: int64[T + 1]. The values are finite and the scales above 0.
    """
    items = (long_at(pointer, num_tables) + ROWS_PER_ITEM - 1) // ROWS_PER_ITEM
    on_all_threads(items, _quantize_item, (values, pointer, num_tables, dim, scales, limit, codes, code_bytes))


@serial
def _quantize_item(
    values: int,
    pointer: int,
    num_tables: int,
    dim: int,
    scales: int,
    limit: np.float32,
    codes: int,
    code_bytes: int,
    item: int,
) -> None:
    start, stop = item * ROWS_PER_ITEM, (item + 1) * ROWS_PER_ITEM
    for table in range(num_tables):
        first, last = max(start, long_at(pointer, table)), min(stop, long_at(pointer, table + 1))
        _quantize(values, first * dim, last * dim, float_at(scales, table), limit, codes, code_bytes)


@serial
def _quantize(
    values: int, start: int, end: int, scale: np.float32, limit: np.float32, codes: int, code_bytes: int
) -> None:
    k = start
    while k + LANES <= end:
        prefetch(values, k + _AHEAD_FLOATS)
        _store(codes, k, _rounded(load(values, k), scale, limit), LANES, code_bytes)
        k += LANES
    if k < end:
        _store(codes, k, _rounded(load_part(values, k, end - k), scale, limit), end - k, code_bytes)


@inlined
def _rounded(value: Any, scale: np.float32, limit: np.float32) -> Any:
    # Divided, not multiplied by the inverse: the error stays within half of the scale.
    return round_clamp(divide(value, splat(scale)), -limit, limit)


@inlined
def _store(codes: int, k: int, rounded: Any, count: int, code_bytes: int) -> None:
    if code_bytes == FP32_CODE_BYTES:
        store_part(codes, k, rounded, count)
    else:
        store_codes(codes, k, rounded, count, code_bytes)


@inlined
def codes_of_row(source: int, at: int, count: int, inverse: np.float32, limit: np.float32) -> Any:
    """Returns the codes of the `count` floats from `at` on, as floats, under the scale 1 / `inverse`."""
    return codes_of(load_part(source, at, count), inverse, limit)


@inlined
def codes_of(values: Any, inverse: np.float32, limit: np.float32) -> Any:
    """Returns the codes of values, as floats, under the scale 1 / `inverse`."""
    return round_clamp(multiply(values, splat(inverse)), -limit - np.float32(1), limit)


@kernel
def quantize_rows(
    weight: int, rows: int, columns: int, scale: np.float32, limit: np.float32, codes: int, code_bytes: int
) -> None:
    """Writes codes [N, D], int8 or int16 by code_bytes, of weights under one scale."""
    inverse = np.float32(1) / scale
    on_all_threads(rows, _quantize_row, (weight, columns, inverse, limit, codes, code_bytes))


@serial
def _quantize_row(
    weight: int, columns: int, inverse: np.float32, limit: np.float32, codes: int, code_bytes: int, row: int
) -> None:
    for k in range(0, columns, LANES):
        at = row * columns + k
        store_codes(codes, at, codes_of_row(weight, at, columns - k, inverse, limit), columns - k, code_bytes)


@kernel
def pack_int4(codes: NDArray[np.int8], packed: NDArray[np.uint8]) -> None:
    """Packs codes [N, D] to packed [N, ceil(D / 2)]."""
    on_all_threads(codes.shape[0], _pack_row, (codes, packed))


@serial
def _pack_row(codes: NDArray[np.int8], packed: NDArray[np.uint8], row: int) -> None:
    dim = codes.shape[1]
    for k in range(dim // 2):
        packed[row, k] = (codes[row, 2 * k] & 15) | (codes[row, 2 * k + 1] & 15) << 4
    if dim % 2:
        packed[row, dim // 2] = codes[row, dim - 1] & 15


@kernel
def unpack_int4(packed: NDArray[np.uint8], codes: NDArray[np.int8]) -> None:
    """Unpacks packed [N, ceil(D / 2)] to codes [N, D]."""
    on_all_threads(codes.shape[0], _unpack_row, (packed, codes))


@serial
def _unpack_row(packed: NDArray[np.uint8], codes: NDArray[np.int8], row: int) -> None:
    for k in range(codes.shape[1]):
        nibble = np.int8(packed[row, k // 2] >> (4 * (k % 2)) & 15)
        codes[row, k] = (nibble ^ 8) - 8
