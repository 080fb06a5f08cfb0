"""Tensors of which each rank holds some rows, as checkpoints write and read them."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class HeldPart(NamedTuple):
    """Consecutive rows of a whole tensor, and where this process holds them."""

    first_row: int
    num_rows: int
    held_at: int

    @property
    def end(self) -> int:
        """The row behind the last."""
        return self.first_row + self.num_rows


class OwnedPart(NamedTuple):
    """Consecutive rows of a whole tensor that a rank writes."""

    first_row: int
    num_rows: int
    rank: int


@dataclass(frozen=True)
class HeldTensor:
    """Some rows of a tensor, which has more of them on other ranks."""

    tensor: Tensor  # [rows held, ...]
    num_rows: int  # of the whole
    held: tuple[HeldPart, ...]
    owned: tuple[OwnedPart, ...]  # of all ranks: each row once, in their order

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole tensor."""
        return (self.num_rows, *self.tensor.shape[1:])

    def rows(self, first_row: int, num_rows: int) -> Tensor:
        """Returns a view of consecutive rows of the whole, all of which this process holds."""
        for part in self.held:
            if part.first_row <= first_row < part.end:
                return self.tensor.narrow(0, part.held_at + first_row - part.first_row, num_rows)
        raise ValueError(f"rows from {first_row} on are held elsewhere")

    def holds_any(self, first_row: int, num_rows: int) -> bool:
        """Tells whether this process holds any of these rows."""
        return any(part.first_row < first_row + num_rows and first_row < part.end for part in self.held)

    def fill(self, first_row: int, values: Tensor) -> None:
        """Copies those of the rows from `first_row` on that this process holds."""
        end = first_row + values.shape[0]
        for part in self.held:
            low, high = max(first_row, part.first_row), min(end, part.end)
            if low < high:
                target = self.tensor.narrow(0, part.held_at + low - part.first_row, high - low)
                target.copy_(values[low - first_row : high - first_row])


Stored = Tensor | HeldTensor
"""A tensor that a checkpoint stores under one name: whole, or the rows of it that this rank holds."""
