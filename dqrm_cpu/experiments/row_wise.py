"""Row-wise post-training quantization, as production systems do it: scale and bias in FP16 for every row.

The range of each row is found by a greedy search that shrinks it from both ends while the squared error falls (Guan et
al., arXiv 1911.02079). PyTorch's own operation does it, the one behind its quantized embedding bags.
"""

import torch
from torch import Tensor

from dqrm_cpu.errors import DeviceError

BYTES_BESIDE_ROW = 4  # scale and bias
_ROWS_AT_ONCE = 1 << 16
_PACKERS = {4: "embedding_bag_4bit", 2: "embedding_bag_2bit"}


def quantize_rows_(weight: Tensor, bits: int) -> None:
    """Replaces f32[R, D] on the CPU by what its packed rows say; bits is 2 or 4."""
    if bits not in _PACKERS:
        raise DeviceError(f"PyTorch packs rows of 2 or 4 bits, not of {bits}; choose one of those")
    prepack = getattr(torch.ops.quantized, f"{_PACKERS[bits]}_prepack")
    unpack = getattr(torch.ops.quantized, f"{_PACKERS[bits]}_unpack")
    for part in torch.split(weight, _ROWS_AT_ONCE):
        part.copy_(unpack(prepack(part.contiguous(), optimized_qparams=True)))


def row_wise_bytes(num_rows: int, dim: int, bits: int) -> int:
    """Of the packed tables."""
    return num_rows * (-(-dim * bits // 8) + BYTES_BESIDE_ROW)
