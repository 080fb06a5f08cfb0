"""Integer codecs with stochastic rounding: what rounding loses has mean 0, whatever the gradient.

The same chances for simulated and for real ranks, and for a run that was interrupted: they follow from the seed of the
run, the step, the rank, and the value's table (or MLP block), row and column.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dqrm_cpu.comm.buffers import Bytes
from dqrm_cpu.comm.exchange.integer_codec import IntegerCodec
from dqrm_cpu.comm.exchange.mlp_forms import BLOCK, Int8Form
from dqrm_cpu.comm.exchange.scales import Floats, ScaleRule
from dqrm_cpu.kernels.numba_impl import stochastic
from dqrm_cpu.kernels.numba_impl.hashing import mixed_in_python
from dqrm_cpu.kernels.types import SparseGrad


class Chances:
    """Keys of the gradients that one process encodes: at each step one for each of `ranks`, in their order."""

    def __init__(self, seed: int, ranks: Sequence[int], step: Callable[[], int]) -> None:
        self._seed = seed
        self._ranks = ranks
        self._step = step
        self._turn = 0

    def next_key(self) -> int:
        rank = self._ranks[self._turn]
        self._turn = (self._turn + 1) % len(self._ranks)
        return mixed_in_python(mixed_in_python(mixed_in_python(0, self._seed), self._step()), rank)


class StochasticCodec(IntegerCodec):
    """Rounds a gradient to multiples of the step before the codec beneath does: that leaves it nothing to round."""

    def __init__(self, width: str, fp32_container: bool, scale_rule: ScaleRule, chances: Chances) -> None:
        super().__init__(width, fp32_container, scale_rule)
        self._chances = chances

    def encode(self, grad: SparseGrad, steps: Floats, out: Bytes) -> None:
        super().encode(rounded(grad, steps, self._chances.next_key()), steps, out)


class StochasticInt8Form(Int8Form):
    """The same for MLP gradients: a block is rounded as a table with a single row."""

    def __init__(self, rule: ScaleRule, chances: Chances) -> None:
        super().__init__(rule)
        self._chances = chances

    def encode(self, values: Tensor, scales: Tensor) -> Tensor:
        blocks = values.view(-1, BLOCK)
        count = blocks.shape[0]
        grad = SparseGrad(torch.arange(count + 1), torch.zeros(count, dtype=torch.int32), blocks)
        return super().encode(rounded(grad, scales.numpy(), self._chances.next_key()).values.view(-1), scales)


def rounded(grad: SparseGrad, steps: Floats, key: int) -> SparseGrad:
    """The gradient with each value at a multiple of its table's step f32[T]."""
    values = stochastic.rounded(grad.values, grad.rows, grad.table_ptr, torch.from_numpy(steps), key)
    return grad._replace(values=values)
