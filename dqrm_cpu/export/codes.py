"""Codes of any width as bytes, row by row: two's complement, the lowest bits first, each row padded to whole bytes.

`dqrm_cpu.serving.stored.unpacked` reads them.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_EVEN, _ODD = np.uint16(0x000F), np.uint16(0x00F0)
"""Where the codes of a pair of bytes, the lower one first, come to lie in one byte."""


def pack_codes(codes: NDArray[np.floating[Any]], bits: int) -> NDArray[np.uint8]:
    """Packs whole numbers [N, D] to uint8[N, bytes of a row]."""
    if bits == 4:
        return _packed_nibbles(codes.astype(np.int8))
    whole = codes.astype("<i2")
    if bits in (8, 16):
        return np.ascontiguousarray(whole.astype(f"<i{bits // 8}")).view(np.uint8)
    as_bits = (whole[:, :, None] >> np.arange(bits)) & 1
    return np.packbits(as_bits.reshape(len(whole), whole.shape[1] * bits).astype(np.uint8), axis=1, bitorder="little")


def _packed_nibbles(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    if codes.shape[1] % 2:
        codes = np.pad(codes, ((0, 0), (0, 1)))
    pairs = codes.view("<u2")
    return ((pairs & _EVEN) | ((pairs >> np.uint16(4)) & _ODD)).astype(np.uint8)
