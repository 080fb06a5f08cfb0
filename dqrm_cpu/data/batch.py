"""A batch of examples, the shares of one that ranks take, and the error for a batch that must not reach the model."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dqrm_cpu.errors import DataError


@dataclass(frozen=True)
class Batch:
    """A batch of B examples, as every data source hands them out.

    One-hot: ids int32[T, B], offsets None. Multi-hot: ids int32[N] table by table, offsets int64[T * B + 1].
    """

    dense: Tensor  # f32[B, num_dense], already log(x + 1)
    ids: Tensor
    offsets: Tensor | None
    label: Tensor  # f32[B], 0 or 1
    weight: Tensor | None = None  # f32[B], how often each example counts; None: once

    @property
    def size(self) -> int:
        """The number of examples."""
        return self.label.numel()

    def ids_by_table(self, num_tables: int) -> list[NDArray[np.int32]]:
        """Returns views of the ids in host memory, one a table."""
        ids = self.ids.numpy()
        if self.offsets is None:
            return list(ids)
        bounds = self.offsets[torch.arange(num_tables + 1) * self.size].tolist()
        return [ids[low:high] for low, high in pairwise(bounds)]

    def copied(self) -> "Batch":
        """Returns the same examples in new tensors: a loader uses the memory of its batches again."""
        offsets = None if self.offsets is None else self.offsets.clone()
        weight = None if self.weight is None else self.weight.clone()
        return Batch(self.dense.clone(), self.ids.clone(), offsets, self.label.clone(), weight)

    def single_ids(self, tables: Sequence[int]) -> Tensor:
        """Returns the id that each example looks up in each of `tables`, int32[B, len(tables)].

        DataError where an example looks up several ids of one of them, or none.
        """
        if self.offsets is None:
            return self.ids[list(tables)].t()
        columns = []
        for table in tables:
            bounds = self.offsets[table * self.size : (table + 1) * self.size + 1]
            if bool((bounds.diff() != 1).any()):
                raise DataError(f"column {table + 1} of the categories has rows with several values, or with none")
            columns.append(self.ids[bounds[:-1]])
        return torch.stack(columns, dim=1)

    def rows(self, first: int, end: int) -> "Batch":
        """Returns examples first to end - 1, of which dense values and labels stay views."""
        dense, label = self.dense[first:end], self.label[first:end]
        weight = None if self.weight is None else self.weight[first:end]
        if self.offsets is None:
            return Batch(dense, self.ids[:, first:end].contiguous(), None, label, weight)
        starts, ends = self.offsets[first :: self.size], self.offsets[end :: self.size]
        ids = torch.cat([self.ids[low:high] for low, high in zip(starts.tolist(), ends.tolist(), strict=False)])
        sizes = self.offsets.diff().view(-1, self.size)[:, first:end]
        offsets = torch.zeros(sizes.numel() + 1, dtype=torch.int64)
        torch.cumsum(sizes.reshape(-1), 0, out=offsets[1:])
        return Batch(dense, ids, offsets, label, weight)

    def only(self, chosen: Tensor) -> "Batch":
        """Returns the examples for which `chosen`, bool[B], is true, in new tensors and in their order."""
        dense, label = self.dense[chosen], self.label[chosen]
        weight = None if self.weight is None else self.weight[chosen]
        if self.offsets is None:
            return Batch(dense, self.ids[:, chosen].contiguous(), None, label, weight)
        sizes = self.offsets.diff()
        of_bags = chosen.repeat(sizes.numel() // chosen.numel())
        offsets = torch.zeros(int(of_bags.sum()) + 1, dtype=torch.int64, device=sizes.device)
        torch.cumsum(sizes[of_bags], 0, out=offsets[1:])
        return Batch(dense, self.ids[of_bags.repeat_interleave(sizes)], offsets, label, weight)


class BadBatchError(DataError):
    """A batch that must not reach the model.

    `row` counts within the batch, and `column` is a default name: I1, I2, ... of dense features, C1, C2, ... of
    categories, "label" or "weight"; both are None where no single row is to blame.
    """

    def __init__(self, fault: str, row: int | None = None, column: str | None = None, share: int = 0) -> None:
        self.fault, self.row, self.column = fault, row, column
        self.share = share  # among those of this process: it has several where ranks are simulated
        super().__init__(fault if row is None else f"row {row} of the batch: {column} {fault}")


@dataclass(frozen=True)
class RankShares:
    """The shares of every global batch that this process computes: its own, or all of them when ranks are simulated.

    Shares are contiguous, so that any number of ranks sees the same order.
    """

    mine: tuple[int, ...]
    total: int


def rank_shares(rank: int, size: int, simulated_ranks: int) -> RankShares:
    """Returns one share for a real rank, and all N in one process that simulates N."""
    if simulated_ranks > 1:
        return RankShares(tuple(range(simulated_ranks)), simulated_ranks)
    return RankShares((rank,), size)


def share_bounds(num_examples: int, share: int, num_shares: int) -> tuple[int, int]:
    """Returns the first and one past the last example of a share; sizes differ by at most one."""
    return num_examples * share // num_shares, num_examples * (share + 1) // num_shares
