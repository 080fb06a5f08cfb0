"""Stochastic rounding of weights in the forward of training (Gupta et al., arXiv 1502.02551, section 3.1).

    w^ = clamp(floor(w / scale) + (u < w / scale - floor(w / scale)), -2^(b - 1), 2^(b - 1) - 1) * scale
    u uniform in [0, 1)

The mean of w^ is w, also where w is less than half of the scale. u follows from the seed of the run, the iteration
and where the weight stands: every rank and every lookup of a row in an iteration sees the same value. Evaluations and
files round to the nearest.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dqrm_cpu.kernels.hashing import splitmix64
from dqrm_cpu.kernels.interface import Kernels
from dqrm_cpu.quant.formula import largest_code

_OF_WEIGHTS, _OF_ROWS, _OF_PRODUCTS = 1, 2, 3  # gradients on a wire begin at 0


@dataclass(frozen=True)
class RoundingKey:
    """The number that all random draws of one iteration follow from."""

    word: int

    def of(self, part: int) -> "RoundingKey":
        """Returns the key of a part, which has chances of its own."""
        return RoundingKey(splitmix64(self.word, part))


class RoundingKeys(NamedTuple):
    """The keys of one iteration; None: rounding to the nearest."""

    tables: RoundingKey | None
    bottom: RoundingKey | None
    projections: RoundingKey | None
    cross: RoundingKey | None
    top: RoundingKey | None


NEAREST = RoundingKeys(None, None, None, None, None)


@dataclass(frozen=True)
class WeightRounding:
    """Says which weights of a run are rounded by chance while it trains, and gives the keys."""

    seed: int
    tables: bool
    mlps: bool

    def keys(self, iteration: int) -> RoundingKeys:
        """Returns the keys of an iteration: others in every iteration of every run."""
        key = RoundingKey(_OF_WEIGHTS).of(self.seed).of(iteration)
        mlps = (key.of(1), key.of(4), key.of(3), key.of(2)) if self.mlps else (None,) * 4
        return RoundingKeys(key.of(0) if self.tables else None, *mlps)


@dataclass(frozen=True)
class RowRounding:
    """Gives the keys by which updated rows of few bits are rounded (`kernels/master_rows.py`)."""

    seed: int

    def key(self, iteration: int) -> RoundingKey:
        """Returns the key of an iteration: another one in every iteration of every run."""
        return RoundingKey(_OF_ROWS).of(self.seed).of(iteration)


@dataclass(frozen=True)
class ProductRounding:
    """Gives the keys by which gradients are rounded that MLPs multiply as whole numbers."""

    seed: int

    def keys(self, iteration: int | None, num_mlps: int) -> list[RoundingKey | None]:
        """Returns the key of each MLP in an iteration of training; None: there is none."""
        if iteration is None:
            return [None] * num_mlps
        key = RoundingKey(_OF_PRODUCTS).of(self.seed).of(iteration)
        return [key.of(number) for number in range(num_mlps)]


def stochastic_values(
    kernels: Kernels, entries: tuple[Tensor, Tensor, Tensor], scale: Tensor, bits: int, key: RoundingKey
) -> Tensor:
    """Quantizes rows of T tables to f32[N, D]; scale f32[T].

    Entries are weights f32[N, D], their rows int32[N], and where each table begins among them int64[T + 1].
    """
    weight, rows, pointer = entries
    rounded = kernels.round_stochastic(weight, rows, pointer, scale, key.word)
    of_row = scale.repeat_interleave(pointer.diff().to(scale.device))[:, None]
    largest = largest_code(bits)
    return torch.clamp(rounded, (-largest - 1) * of_row, largest * of_row)


def stochastic_matrix(kernels: Kernels, weight: Tensor, scale: Tensor, bits: int, key: RoundingKey) -> Tensor:
    """Quantizes a matrix f32[O, I]; scale f32[O], one for each row, or f32[1]."""
    by_row = torch.arange(weight.shape[0] + 1, device=weight.device)
    if scale.numel() == 1:
        return stochastic_values(kernels, (weight, by_row[:-1].int(), by_row[[0, -1]]), scale, bits, key)
    return stochastic_values(kernels, (weight, torch.zeros_like(by_row[:-1]).int(), by_row), scale, bits, key)
