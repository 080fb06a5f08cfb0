"""Stochastic rounding of weights in the forward of training (Gupta et al., arXiv 1502.02551, section 3.1).

    w^ = clamp(floor(w / step) + (u < w / step - floor(w / step)), -2^(b - 1), 2^(b - 1) - 1) * step
    u uniform in [0, 1)

The mean of w^ is w, also where w is less than half a step. u follows from the seed of the run, the iteration and where
the weight stands: every rank and every lookup of a row in an iteration sees the same value. Evaluations and files round
to the nearest.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dqrm_cpu.kernels.interface import Kernels
from dqrm_cpu.kernels.numba_impl.hashing import mixed_in_python
from dqrm_cpu.quant.formula import largest_code

_OF_WEIGHTS = 1  # gradients on a wire begin at 0


@dataclass(frozen=True)
class RoundingKey:
    """What the chances of one iteration follow from."""

    word: int

    def of(self, part: int) -> "RoundingKey":
        """That of a part, which has chances of its own."""
        return RoundingKey(mixed_in_python(self.word, part))


class RoundingKeys(NamedTuple):
    """Of one iteration; None: to the nearest."""

    tables: RoundingKey | None
    bottom: RoundingKey | None
    top: RoundingKey | None


NEAREST = RoundingKeys(None, None, None)


@dataclass(frozen=True)
class Rounding:
    """Which weights of a run are rounded by chance while it trains."""

    seed: int
    tables: bool
    mlps: bool

    def keys(self, iteration: int) -> RoundingKeys:
        """Others in every iteration of every run."""
        key = RoundingKey(_OF_WEIGHTS).of(self.seed).of(iteration)
        mlps = (key.of(1), key.of(2)) if self.mlps else (None, None)
        return RoundingKeys(key.of(0) if self.tables else None, *mlps)


def stochastic_values(
    kernels: Kernels, entries: tuple[Tensor, Tensor, Tensor], step: Tensor, bits: int, key: RoundingKey
) -> Tensor:
    """Quantized f32[N, D] by tables: entries are weights f32[N, D], their rows int32[N], and where each of T tables
    begins among them int64[T + 1]; step f32[T].
    """
    weight, rows, pointer = entries
    rounded = kernels.round_stochastic(weight, rows, pointer, step, key.word)
    of_row = step.repeat_interleave(pointer.diff().to(step.device))[:, None]
    largest = largest_code(bits)
    return torch.clamp(rounded, (-largest - 1) * of_row, largest * of_row)


def stochastic_matrix(kernels: Kernels, weight: Tensor, step: Tensor, bits: int, key: RoundingKey) -> Tensor:
    """Quantized f32[O, I]; step f32[O], one for each row, or f32[1]."""
    by_row = torch.arange(weight.shape[0] + 1, device=weight.device)
    if step.numel() == 1:
        return stochastic_values(kernels, (weight, by_row[:-1].int(), by_row[[0, -1]]), step, bits, key)
    return stochastic_values(kernels, (weight, torch.zeros_like(by_row[:-1]).int(), by_row), step, bits, key)
