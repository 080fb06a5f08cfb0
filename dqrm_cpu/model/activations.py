"""What dense layers read: as it is, or fake-quantized, and the maxima that its scales come from.

One scale per tensor, from max|x|, straight through; uniform as the weights are, whatever their method:

    after a rectifier  scale = max x / (2^b - 1)         x^ = clamp(round(x / scale), 0, 2^b - 1) * scale
    elsewhere          scale = max|x| / (2^(b - 1) - 1)  x^ = clamp(round(x / scale), -2^(b - 1), 2^(b - 1) - 1) * scale

Training scales each tensor by its own maximum, of the rows that a rank has at hand: no value is clipped, so that the
straight-through gradient is that of the identity. An evaluation must not depend on which rows stand beside one in a
batch: it uses the running maximum, a moving average of those of the batches, which a checkpoint holds and a packed file
gives.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from dqrm_cpu.kernels.types import UNQUANTIZED
from dqrm_cpu.model.shapes import LayerShape
from dqrm_cpu.quant.formula import SMALLEST_SCALE, largest_code

MOMENTUM = 0.99
"""The weight of the old running maximum when an iteration's own is averaged into it."""

_UNSEEN = -1.0

ReadInput = Callable[[int, Tensor], Tensor]
"""Takes the number of a layer in its MLP and its input, returns what the layer computes with."""


@dataclass(frozen=True)
class ActivationFormula:
    """The quantizer of one tensor; `signed` unless that comes out of a rectifier."""

    bits: int
    signed: bool

    @property
    def codes(self) -> tuple[int, int]:
        """The smallest and the largest code."""
        largest = largest_code(self.bits)
        return (-largest - 1, largest) if self.signed else (0, 2**self.bits - 1)

    def absmax(self, x: Tensor) -> Tensor:
        """Returns max|x| as f32[], NaN where x holds one."""
        if not self.signed:
            return x.amax().float()
        low, high = torch.aminmax(x)
        return torch.maximum(-low, high).float()

    def scale(self, absmax: Tensor) -> Tensor:
        """Computes the scale f32[], 1e-8 at least: all inputs of a layer may be 0."""
        return (absmax / self.codes[1]).clamp_(min=float(SMALLEST_SCALE))

    def values(self, x: Tensor, scale: Tensor) -> Tensor:
        """Fake-quantizes x with scale f32[], in the precision of x."""
        return torch.round(x.float() * torch.reciprocal(scale)).clamp_(*self.codes).mul_(scale).to(x.dtype)


class Mode(Enum):
    """The way in which inputs are read, where they have bits."""

    WATCHED = "in full, their maxima are noted"
    BY_BATCH = "quantized by their own maxima, which are noted"
    BY_RUNNING = "quantized by the running maxima"


class LayerInputs:
    """The inputs of L layers, bottom to top; L is 0 where inputs are left as they are."""

    def __init__(self, bits: int, parts: Sequence[Sequence[LayerShape]], device: torch.device) -> None:
        layers = [] if bits == UNQUANTIZED else [signed for shapes in parts for signed in _signed(shapes)]
        self.formulas = tuple(ActivationFormula(bits, signed) for signed in layers)
        self.running = torch.full((len(layers),), _UNSEEN, device=device)  # f32[L]
        self.mode = Mode.BY_RUNNING
        self._seen = torch.zeros(len(layers), device=device)  # of the latest forward

    @property
    def begun(self) -> bool:
        """Whether there are running maxima; also where none are needed."""
        return bool((self.running >= 0).all())

    def reader(self, first_layer: int) -> ReadInput:
        """Returns what the MLP whose layers count from `first_layer` calls for each of its inputs."""
        if not self.formulas:
            return lambda layer, x: x
        return lambda layer, x: self._read(first_layer + layer, x)

    def write_seen(self, share: float, out: Tensor) -> None:
        """Writes what the latest forward adds to the mean maxima f32[L] of a batch, of which it computed that share."""
        if self.formulas:
            torch.mul(self._seen, share, out=out)

    def follow(self, maxima: Tensor) -> None:
        """Moves the running maxima towards those of a batch, f32[L]; the first ones are taken as they are."""
        if self.formulas:
            moved = torch.lerp(maxima, self.running, MOMENTUM)
            self.running.copy_(torch.where(self.running < 0, maxima, moved))

    def forget(self) -> None:
        """Forgets the running maxima, as if nothing had been seen yet."""
        self.running.fill_(_UNSEEN)

    def scales(self) -> list[Tensor]:
        """Returns the scales of an evaluation, f32[] each."""
        return [formula.scale(maximum) for formula, maximum in zip(self.formulas, self.running, strict=True)]

    def _read(self, layer: int, x: Tensor) -> Tensor:
        formula = self.formulas[layer]
        if self.mode is Mode.BY_RUNNING:
            return formula.values(x, formula.scale(self.running[layer]))
        maximum = formula.absmax(x)
        self._seen[layer] = maximum
        return x if self.mode is Mode.WATCHED else formula.values(x, formula.scale(maximum))


def _signed(shapes: Sequence[LayerShape]) -> list[bool]:
    """Tells which inputs of a part's layers have a sign: the first come from outside, where anything has one."""
    return [i == 0 or not shapes[i - 1].relu for i in range(len(shapes))]
