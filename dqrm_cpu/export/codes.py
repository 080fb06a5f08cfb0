"""Codes of any width as bytes, row by row: two's complement, the lowest bits first, each row padded to whole bytes."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dqrm_cpu.kernels.interface import Kernels
from dqrm_cpu.model.size import packed_row_bytes


def pack_codes(codes: Tensor, bits: int, kernels: Kernels) -> NDArray[np.uint8]:
    """Integers [N, D], as floats or not, to uint8[N, bytes of a row]."""
    if bits == 4:
        packed: NDArray[np.uint8] = kernels.pack_int4(codes.to(torch.int8)).cpu().numpy()
        return packed
    whole = codes.cpu().numpy().astype("<i2")
    if bits in (8, 16):
        return np.ascontiguousarray(whole.astype(f"<i{bits // 8}")).view(np.uint8)
    as_bits = (whole[:, :, None] >> np.arange(bits)) & 1
    return np.packbits(as_bits.reshape(len(whole), whole.shape[1] * bits).astype(np.uint8), axis=1, bitorder="little")


def unpack_codes(packed: NDArray[np.uint8], bits: int, dim: int, kernels: Kernels) -> Tensor:
    """uint8[N, bytes of a row] to f32[N, dim]."""
    assert packed.shape[1] == packed_row_bytes(dim, bits)
    if bits == 4:
        return kernels.unpack_int4(torch.from_numpy(np.ascontiguousarray(packed)), dim).float()
    if bits in (8, 16):
        return torch.from_numpy(np.ascontiguousarray(packed).view(f"<i{bits // 8}").astype(np.float32))
    as_bits = np.unpackbits(packed, axis=1, count=dim * bits, bitorder="little").reshape(len(packed), dim, bits)
    unsigned = as_bits @ (1 << np.arange(bits))
    return torch.from_numpy((unsigned - (as_bits[:, :, -1].astype(np.int64) << bits)).astype(np.float32))
