"""Table gradients as small integers under one step per table (paper 3.3, B.1), summed in int32 after the wire.

An 8-bit sum on the wire would wrap: 100 + 100 is -56.
"""

from collections.abc import Sequence

import numpy as np
import torch

from dqrm_cpu.comm.buffers import Bytes
from dqrm_cpu.comm.exchange.codec import Layout, Longs, layout_of
from dqrm_cpu.comm.exchange.scales import Floats, ScaleRule
from dqrm_cpu.kernels.numba_impl import codes, scan
from dqrm_cpu.kernels.numba_impl.arena import arena_of
from dqrm_cpu.kernels.numba_impl.merging import Merging
from dqrm_cpu.kernels.types import SparseGrad, Tables

_WIDTH_BYTES = {"int8": 1, "int16": 2}


class IntegerCodec:
    """int8 or int16, as such (ours) or in FP32 containers (the paper's wire); the container changes no sum.

    It quantizes and sums on a CPU, whatever kernels the model runs.
    """

    def __init__(self, width: str, fp32_container: bool, scale_rule: ScaleRule) -> None:
        self.name = f"{width}-fp32" if fp32_container else width
        self.value_bytes = codes.FP32_CODE_BYTES if fp32_container else _WIDTH_BYTES[width]
        self.scale_rule = scale_rule

    def absmax(self, grad: SparseGrad) -> Floats | None:
        largest = np.empty(grad.table_ptr.numel() - 1, dtype=np.float32)
        values = Tables(grad.values.contiguous(), grad.table_ptr.contiguous())
        scan.scan_tables(arena_of(values), largest.ctypes.data)
        return largest

    def encode(self, grad: SparseGrad, steps: Floats, out: Bytes) -> None:
        layout = layout_of(grad, self.value_bytes)
        layout.rows(out)[:] = grad.rows.numpy()
        values, pointer, steps = grad.values.contiguous(), grad.table_ptr.contiguous(), np.ascontiguousarray(steps)
        codes.quantize_tables(
            values.data_ptr(),
            pointer.data_ptr(),
            steps.size,
            layout.dim,
            steps.ctypes.data,
            np.float32(self.scale_rule.limit),
            layout.values(out).ctypes.data,
            self.value_bytes,
        )
        layout.clear_padding(out)

    def sent(self, grad: SparseGrad, steps: Floats, message: Bytes) -> Floats:
        layout = layout_of(grad, self.value_bytes)
        kinds: dict[int, type[np.generic]] = {1: np.int8, 2: np.int16, codes.FP32_CODE_BYTES: np.float32}
        integers = layout.values(message).view(kinds[self.value_bytes]).reshape(layout.num_rows, layout.dim)
        counts = np.diff(grad.table_ptr.numpy())
        return integers.astype(np.float32) * np.repeat(steps, counts)[:, None]

    def merge(self, messages: Sequence[Bytes], pointers: Longs, dim: int, steps: Floats) -> SparseGrad:
        layouts = [Layout(int(pointer[-1]), dim, self.value_bytes) for pointer in pointers]
        parts = list(zip(layouts, messages, strict=True))
        merging = Merging([torch.from_numpy(layout.rows(part)) for layout, part in parts], torch.from_numpy(pointers))
        sent = [torch.from_numpy(layout.values(part)) for layout, part in parts]
        return merging.sum_codes(sent, dim, self.value_bytes, torch.from_numpy(steps))
