"""Codes as bytes, row by row.

Codes of any width: two's complement, the lowest bits first, each row padded to whole bytes.

Row-wise codes are the production baseline: asymmetric, each row's range narrowed by a greedy search (arXiv 1911.02079).

    x^ = code * scale + bias, codes 0 to 2^b - 1; scale and bias in FP16 behind the codes of each row.
    The search starts from [min, max] of the row and takes a 200th of it off whichever end hurts the squared error less,
    until 16% are gone; the best local optimum on the way is used, the whole range if there is none. Errors are those of
    scale and bias in FP16.

It runs in torch's own operators, the ones that its quantized embedding bags are packed with.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dqrm_cpu.kernels.interface import Kernels
from dqrm_cpu.model.size import packed_row_bytes

ROWWISE_BITS = (2, 4)
ROWWISE_SCALE_BYTES = 4
"""Scale and bias in FP16 behind the codes of a row."""

_BINS = 200
_RATIO = 0.16


def pack_codes(codes: Tensor, bits: int, kernels: Kernels) -> NDArray[np.uint8]:
    """Packs integers [N, D], floats or not, to uint8[N, bytes of a row]."""
    if bits == 4:
        packed: NDArray[np.uint8] = kernels.pack_int4(codes.to(torch.int8)).cpu().numpy()
        return packed
    whole = codes.cpu().numpy().astype("<i2")
    if bits in (8, 16):
        return np.ascontiguousarray(whole.astype(f"<i{bits // 8}")).view(np.uint8)
    as_bits = (whole[:, :, None] >> np.arange(bits)) & 1
    return np.packbits(as_bits.reshape(len(whole), whole.shape[1] * bits).astype(np.uint8), axis=1, bitorder="little")


def unpack_codes(packed: NDArray[np.uint8], bits: int, dim: int, kernels: Kernels) -> Tensor:
    """Unpacks uint8[N, bytes of a row] to the codes f32[N, dim]."""
    assert packed.shape[1] == packed_row_bytes(dim, bits)
    if bits == 4:
        return kernels.unpack_int4(torch.from_numpy(np.ascontiguousarray(packed)), dim).float()
    if bits in (8, 16):
        return torch.from_numpy(np.ascontiguousarray(packed).view(f"<i{bits // 8}").astype(np.float32))
    as_bits = np.unpackbits(packed, axis=1, count=dim * bits, bitorder="little").reshape(len(packed), dim, bits)
    unsigned = as_bits @ (1 << np.arange(bits))
    return torch.from_numpy((unsigned - (as_bits[:, :, -1].astype(np.int64) << bits)).astype(np.float32))


def pack_rows(weight: Tensor, bits: int) -> Tensor:
    """Quantizes f32[N, D] row by row, to uint8[N, bytes of the codes + 4]."""
    packed: Tensor = getattr(torch.ops.quantized, f"embedding_bag_{bits}bit_prepack")(weight, True, _BINS, _RATIO)
    return packed


def unpack_rows(packed: Tensor, bits: int) -> Tensor:
    """Returns the values f32[N, D] of uint8[N, bytes of the codes + 4]."""
    values: Tensor = getattr(torch.ops.quantized, f"embedding_bag_{bits}bit_unpack")(packed)
    return values
