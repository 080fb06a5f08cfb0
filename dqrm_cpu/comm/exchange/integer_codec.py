"""Table gradients as small integers under one scale per table (paper 3.3, B.1), summed in int32 after the wire.

An 8-bit sum on the wire would wrap: 100 + 100 is -56.

With stochastic rounding, of tables and of the MLPs' INT8 form, what rounding loses has mean 0, whatever the gradient.
Its random numbers are the same for simulated and for real ranks, and for a run that was interrupted: they follow from
the seed of the run, the step, the rank, and the value's table (or MLP block), row and column.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from dqrm_cpu.comm.exchange.codec import Floats, Ints, Longs, ScaleRule, layout_of
from dqrm_cpu.comm.exchange.mlp_exchange import BLOCK, Int8Form
from dqrm_cpu.comm.transport import Bytes
from dqrm_cpu.kernels.gradient_codes import gradient_absmax, quantize_gradient, round_gradient, sum_codes
from dqrm_cpu.kernels.hashing import splitmix64
from dqrm_cpu.kernels.jit.simd_integers import FP32_CODE_BYTES
from dqrm_cpu.kernels.types import SparseGrad

_WIDTH_BYTES = {"int8": 1, "int16": 2}


class IntegerCodec:
    """The codec of int8 or int16, as such (ours) or in FP32 containers (the paper's wire), which change no sum.

    It quantizes and sums on a CPU, whatever kernels the model runs.
    """

    def __init__(self, width: str, fp32_container: bool, scale_rule: ScaleRule) -> None:
        self.name = f"{width}-fp32" if fp32_container else width
        self.value_bytes = FP32_CODE_BYTES if fp32_container else _WIDTH_BYTES[width]
        self.scale_rule = scale_rule

    def absmax(self, grad: SparseGrad) -> Floats | None:
        absmax: Floats = gradient_absmax(grad).numpy()
        return absmax

    def encode(self, grad: SparseGrad, scales: Floats, out: Bytes) -> None:
        layout = layout_of(grad, self.value_bytes)
        layout.rows(out)[:] = grad.rows.numpy()
        codes = torch.from_numpy(layout.values(out))
        quantize_gradient(grad, torch.from_numpy(scales), self.scale_rule.limit, self.value_bytes, codes)
        layout.clear_padding(out)

    def sent(self, grad: SparseGrad, scales: Floats, message: Bytes) -> Floats:
        layout = layout_of(grad, self.value_bytes)
        kinds: dict[int, type[np.generic]] = {1: np.int8, 2: np.int16, FP32_CODE_BYTES: np.float32}
        integers = layout.values(message).view(kinds[self.value_bytes]).reshape(layout.num_rows, layout.dim)
        counts = np.diff(grad.table_ptr.numpy())
        return integers.astype(np.float32) * np.repeat(scales, counts)[:, None]

    def sum_rows(
        self, rows: Sequence[Ints], values: Sequence[Bytes], pointers: Longs, dim: int, scales: Floats
    ) -> SparseGrad:
        own, codes = [torch.from_numpy(part) for part in rows], [torch.from_numpy(part) for part in values]
        return sum_codes(own, torch.from_numpy(pointers), codes, dim, self.value_bytes, torch.from_numpy(scales))


class GradientKeys:
    """The random keys of the gradients that a process encodes: at each step one for each of `ranks`, in their order."""

    def __init__(self, seed: int, ranks: Sequence[int], step: Callable[[], int]) -> None:
        self._seed = seed
        self._ranks = ranks
        self._step = step
        self._turn = 0

    def next_key(self) -> int:
        """Returns the key of the next gradient."""
        rank = self._ranks[self._turn]
        self._turn = (self._turn + 1) % len(self._ranks)
        return splitmix64(splitmix64(splitmix64(0, self._seed), self._step()), rank)


class StochasticCodec(IntegerCodec):
    """An IntegerCodec that rounds by chance: it first moves values to multiples of the scale, which then stay."""

    def __init__(self, width: str, fp32_container: bool, scale_rule: ScaleRule, keys: GradientKeys) -> None:
        super().__init__(width, fp32_container, scale_rule)
        self._keys = keys

    def encode(self, grad: SparseGrad, scales: Floats, out: Bytes) -> None:
        super().encode(round_gradient(grad, torch.from_numpy(scales), self._keys.next_key()), scales, out)


class StochasticInt8Form(Int8Form):
    """An Int8Form that rounds by chance: a block of an MLP gradient is rounded as a table with a single row."""

    def __init__(self, rule: ScaleRule, keys: GradientKeys) -> None:
        super().__init__(rule)
        self._keys = keys

    def encode(self, values: Tensor, scales: Tensor) -> Tensor:
        blocks = values.view(-1, BLOCK)
        count = blocks.shape[0]
        grad = SparseGrad(torch.arange(count + 1), torch.zeros(count, dtype=torch.int32), blocks)
        rounded = round_gradient(grad, scales, self._keys.next_key())
        return super().encode(rounded.values.view(-1), scales)
