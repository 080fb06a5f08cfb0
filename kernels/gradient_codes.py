"""Table gradients as integer codes under one scale per table, on a CPU, whatever kernels the model runs.

Codes are int8, int16, or integers in FP32 containers (the paper's wire): 1, 2 or 4 bytes. Every container holds the
same integers, so that what is summed does not depend on it.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .jit.arena import arena_of
from .numba.absmax_tracker import scan_tables
from .numba.codes import quantize_tables
from .numba.merge import MergedRows
from .numba.random_values import rounded
from .types import SparseGrad, Tables


def gradient_absmax(grad: SparseGrad) -> Tensor:
    """Returns the largest magnitude of each table's gradient, f32[T]; NaN where there is a NaN."""
    largest = torch.empty(grad.table_ptr.numel() - 1)
    values = Tables(grad.values.contiguous(), grad.table_ptr.contiguous())
    scan_tables(arena_of(values), largest.data_ptr())
    return largest


def quantize_gradient(grad: SparseGrad, scales: Tensor, limit: int, code_bytes: int, out: Tensor) -> None:
    """Writes the codes of each value under its table's scale f32[T], kept within +-limit, to `out`, as bytes."""
    # Named, so that a copy that had to be made lives until the kernel is done.
    values, pointer, scales = grad.values.contiguous(), grad.table_ptr.contiguous(), scales.contiguous()
    places = (values.data_ptr(), pointer.data_ptr(), scales.numel(), values.shape[1], scales.data_ptr())
    quantize_tables(*places, np.float32(limit), out.data_ptr(), code_bytes)


def sum_codes(
    rows: Sequence[Tensor], pointers: Tensor, codes: Sequence[Tensor], dim: int, code_bytes: int, scales: Tensor
) -> SparseGrad:
    """Sums the codes of K ranks in int32, times their table's scale f32[T].

    rows: int32[N_k] of each rank; pointers: int64[K, T + 1] into them; codes: [N_k, D] of each rank, as bytes.
    """
    return MergedRows(rows, pointers).sum_codes(codes, dim, code_bytes, scales)


def round_gradient(grad: SparseGrad, scales: Tensor, key: int) -> SparseGrad:
    """Rounds each value up or down to a multiple of its table's scale f32[T], by chance."""
    return grad._replace(values=rounded(grad.values, grad.rows, grad.table_ptr, scales, key))
