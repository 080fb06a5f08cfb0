"""Two 4-bit codes a byte, low nibble first."""

import numpy as np
from numba import prange
from numpy.typing import NDArray

from .compiled import parallel


@parallel
def pack_int4(codes: NDArray[np.int8], packed: NDArray[np.uint8]) -> None:
    """codes [N, D] to packed [N, ceil(D / 2)]."""
    rows, dim = codes.shape
    for row in prange(rows):
        for k in range(dim // 2):
            packed[row, k] = (codes[row, 2 * k] & 15) | (codes[row, 2 * k + 1] & 15) << 4
        if dim % 2:
            packed[row, dim // 2] = codes[row, dim - 1] & 15


@parallel
def unpack_int4(packed: NDArray[np.uint8], codes: NDArray[np.int8]) -> None:
    """packed [N, ceil(D / 2)] to codes [N, D]."""
    rows, dim = codes.shape
    for row in prange(rows):
        for k in range(dim):
            nibble = np.int8(packed[row, k // 2] >> (4 * (k % 2)) & 15)
            codes[row, k] = (nibble ^ 8) - 8
