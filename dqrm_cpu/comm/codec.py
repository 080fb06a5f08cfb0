"""How a sparse gradient becomes the bytes of one message, and back; knows nothing of ranks and transports."""

from typing import Protocol

import numpy as np
import torch

from dqrm_cpu.comm.buffers import Bytes, align
from dqrm_cpu.errors import CommError
from dqrm_cpu.kernels.types import SparseGrad

PART_ALIGNMENT_BYTES = 16


class Codec(Protocol):
    """One message for all tables. The table count and the dimension are known on both sides and do not travel."""

    name: str

    def encoded_bytes(self, grad: SparseGrad) -> int:
        """Length of the message of `grad`."""

    def encode(self, grad: SparseGrad, out: Bytes) -> None:
        """Fills `out`, which is `encoded_bytes(grad)` long."""

    def decode(self, message: Bytes, num_tables: int, dim: int) -> SparseGrad:
        """The gradient in `message`; may be views into it. Raises CommError when the lengths do not fit."""


class Fp32Codec:
    """table counts int64[T] | rows int32[N] | values f32[N, D], each part on 16 bytes; decoded without a copy."""

    name = "fp32"

    def encoded_bytes(self, grad: SparseGrad) -> int:
        return _layout(grad.table_ptr.numel() - 1, grad.rows.numel(), grad.values.shape[1])[-1]

    def encode(self, grad: SparseGrad, out: Bytes) -> None:
        num_tables, num_rows = grad.table_ptr.numel() - 1, grad.rows.numel()
        rows_start, values_start, end = _layout(num_tables, num_rows, grad.values.shape[1])
        if out.size != end:
            raise ValueError(f"the message takes {end} bytes, not {out.size}")
        out[: num_tables * 8].view(np.int64)[:] = np.diff(grad.table_ptr.numpy())
        out[num_tables * 8 : rows_start] = 0
        out[rows_start : rows_start + num_rows * 4].view(np.int32)[:] = grad.rows.numpy()
        out[rows_start + num_rows * 4 : values_start] = 0
        values = out[values_start : values_start + grad.values.numel() * 4].view(np.float32)
        values.reshape(grad.values.shape)[:] = grad.values.numpy()
        out[values_start + grad.values.numel() * 4 :] = 0

    def decode(self, message: Bytes, num_tables: int, dim: int) -> SparseGrad:
        if message.size < num_tables * 8:
            raise CommError(f"a gradient message of {message.size} bytes is too short for {num_tables} tables")
        counts = message[: num_tables * 8].view(np.int64)
        num_rows = int(counts.sum())
        rows_start, values_start, end = _layout(num_tables, num_rows, dim)
        if (counts < 0).any() or message.size != end:
            raise CommError(
                f"a gradient message of {message.size} bytes does not fit its {num_rows} rows of {num_tables} tables, "
                f"dimension {dim}, which take {end}"
            )
        table_ptr = np.zeros(num_tables + 1, dtype=np.int64)
        np.cumsum(counts, out=table_ptr[1:])
        rows = message[rows_start : rows_start + num_rows * 4].view(np.int32)
        values = message[values_start : values_start + num_rows * dim * 4].view(np.float32).reshape(num_rows, dim)
        return SparseGrad(torch.from_numpy(table_ptr), torch.from_numpy(rows), torch.from_numpy(values))


def _layout(num_tables: int, num_rows: int, dim: int) -> tuple[int, int, int]:
    """Where the rows start, where the values start, and the length of it all, in bytes."""
    rows_start = align(num_tables * 8, PART_ALIGNMENT_BYTES)
    values_start = align(rows_start + num_rows * 4, PART_ALIGNMENT_BYTES)
    return rows_start, values_start, align(values_start + num_rows * dim * 4, PART_ALIGNMENT_BYTES)
