"""Two 4-bit codes a byte, low nibble first."""

import numpy as np
from numpy.typing import NDArray

from .compiled import kernel, serial
from .threads import on_all_threads


@kernel
def pack_int4(codes: NDArray[np.int8], packed: NDArray[np.uint8]) -> None:
    """codes [N, D] to packed [N, ceil(D / 2)]."""
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
    """packed [N, ceil(D / 2)] to codes [N, D]."""
    on_all_threads(codes.shape[0], _unpack_row, (packed, codes))


@serial
def _unpack_row(packed: NDArray[np.uint8], codes: NDArray[np.int8], row: int) -> None:
    for k in range(codes.shape[1]):
        nibble = np.int8(packed[row, k // 2] >> (4 * (k % 2)) & 15)
        codes[row, k] = (nibble ^ 8) - 8
