"""A batch of examples, as every data source hands it out, and the error for one that must not reach the model."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dqrm_cpu.errors import DataError


@dataclass(frozen=True)
class Batch:
    """B examples.

    One-hot: ids int32[T, B], offsets None. Multi-hot: ids int32[N] table by table, offsets int64[T * B + 1].
    """

    dense: Tensor  # f32[B, num_dense], already log(x + 1)
    ids: Tensor
    offsets: Tensor | None
    label: Tensor  # f32[B], 0 or 1

    @property
    def size(self) -> int:
        return self.label.numel()

    def copied(self) -> "Batch":
        """The same examples in new tensors: a loader uses the memory of its batches again."""
        offsets = None if self.offsets is None else self.offsets.clone()
        return Batch(self.dense.clone(), self.ids.clone(), offsets, self.label.clone())

    def only(self, chosen: Tensor) -> "Batch":
        """The examples for which `chosen`, bool[B], is true, in new tensors and in their order."""
        dense, label = self.dense[chosen], self.label[chosen]
        if self.offsets is None:
            return Batch(dense, self.ids[:, chosen].contiguous(), None, label)
        sizes = self.offsets.diff()
        of_bags = chosen.repeat(sizes.numel() // chosen.numel())
        offsets = torch.zeros(int(of_bags.sum()) + 1, dtype=torch.int64, device=sizes.device)
        torch.cumsum(sizes[of_bags], 0, out=offsets[1:])
        return Batch(dense, self.ids[of_bags.repeat_interleave(sizes)], offsets, label)


class BadBatchError(DataError):
    """A batch that must not reach the model.

    `row` counts within the batch, and `column` is a default name: I1, I2, ... of dense features, C1, C2, ... of
    categories, or "label"; both are None where no single row is to blame.
    """

    def __init__(self, fault: str, row: int | None = None, column: str | None = None, share: int = 0) -> None:
        self.fault, self.row, self.column = fault, row, column
        self.share = share  # among those of this process: it has several where ranks are simulated
        super().__init__(fault if row is None else f"row {row} of the batch: {column} {fault}")
