"""What the layers of both MLPs read: as it is, or fake-quantized, and the maxima that its scales come from.

Training scales each tensor by its own maximum, of the rows that a rank has at hand. An evaluation must not depend on
which rows stand beside one in a batch: it uses the running maximum, a moving average of those of the batches, which a
checkpoint holds and a packed file gives as the step.
"""

from collections.abc import Callable, Sequence
from enum import Enum

import torch
from torch import Tensor

from dqrm_cpu.kernels.types import UNQUANTIZED
from dqrm_cpu.model.layers import LayerShape
from dqrm_cpu.quant.activations import ActivationFormula

MOMENTUM = 0.99
"""Of the running maximum: what a step leaves of it."""

_UNSEEN = -1.0

ReadInput = Callable[[int, Tensor], Tensor]
"""From the number of a layer in its MLP and its input to what the layer computes with."""


class Mode(Enum):
    """How inputs are read, where they have bits."""

    WATCHED = "in full, their maxima are noted"
    BY_BATCH = "quantized by their own maxima, which are noted"
    BY_RUNNING = "quantized by the running maxima"


class LayerInputs:
    """Of L layers, bottom to top; L is 0 where inputs are left as they are."""

    def __init__(self, bits: int, mlps: Sequence[Sequence[LayerShape]], device: torch.device) -> None:
        layers = [] if bits == UNQUANTIZED else [signed for shapes in mlps for signed in _signed(shapes)]
        self.formulas = tuple(ActivationFormula(bits, signed) for signed in layers)
        self.running = torch.full((len(layers),), _UNSEEN, device=device)  # f32[L]
        self.mode = Mode.BY_RUNNING
        self._seen = torch.zeros(len(layers), device=device)  # of the latest forward

    @property
    def begun(self) -> bool:
        """Whether there are running maxima; also where none are needed."""
        return bool((self.running >= 0).all())

    def reader(self, first_layer: int) -> ReadInput:
        """For the MLP whose layers count from there."""
        if not self.formulas:
            return lambda layer, x: x
        return lambda layer, x: self._read(first_layer + layer, x)

    def write_seen(self, share: float, out: Tensor) -> None:
        """What the latest forward adds to the mean maxima f32[L] of a batch, of which it computed that share."""
        if self.formulas:
            torch.mul(self._seen, share, out=out)

    def follow(self, maxima: Tensor) -> None:
        """The running maxima take those of a batch, f32[L], into account; the first ones as they are."""
        if self.formulas:
            moved = torch.lerp(maxima, self.running, MOMENTUM)
            self.running.copy_(torch.where(self.running < 0, maxima, moved))

    def forget(self) -> None:
        """As if nothing had been seen yet."""
        self.running.fill_(_UNSEEN)

    def steps(self) -> list[Tensor]:
        """Those of an evaluation, f32[] each."""
        return [formula.step(maximum) for formula, maximum in zip(self.formulas, self.running, strict=True)]

    def _read(self, layer: int, x: Tensor) -> Tensor:
        formula = self.formulas[layer]
        if self.mode is Mode.BY_RUNNING:
            return formula.values(x, formula.step(self.running[layer]))
        maximum = formula.absmax(x)
        self._seen[layer] = maximum
        return x if self.mode is Mode.WATCHED else formula.values(x, formula.step(maximum))


def _signed(shapes: Sequence[LayerShape]) -> list[bool]:
    """Of an MLP's inputs: the first come from outside, where anything has a sign."""
    return [True, *(not shape.relu for shape in shapes[:-1])]
