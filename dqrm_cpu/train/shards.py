"""The tables of a run that lie on several ranks: who holds which rows, and what the ranks must bring together."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from dqrm_cpu.base.memory import format_size
from dqrm_cpu.base.wording import counted
from dqrm_cpu.comm.sharding.placement import Placement, TableLoad, held_bytes, placement_of
from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.config import Config
from dqrm_cpu.model.tables import HeldRows
from dqrm_cpu.train.held_tensor import HeldPart, HeldTensor, OwnedPart, Stored
from dqrm_cpu.train.optimizers import LAST_UPDATES
from dqrm_cpu.train.weight_average import TRAINED

_OF_ROWS = frozenset({"tables", "optimizer.rows", LAST_UPDATES, f"{TRAINED}tables"})
"""The tensors of a checkpoint with a row for each row of the tables."""


class Shards:
    """Knows the placement of all tables, and gathers what follows from all of their rows."""

    def __init__(self, placement: Placement, transport: Transport) -> None:
        self.placement = placement
        self._transport = transport

    @cached_property
    def held(self) -> list[HeldRows]:
        """The rows of each table that this process holds."""
        return [HeldRows(*rows) for rows in self.placement.held_rows(self._transport.rank)]

    def describe(self, loads: Sequence[TableLoad]) -> str:
        """Says where the tables lie, and how much of them the ranks hold."""
        placement, ranks = self.placement, range(self.placement.world_size)
        cut = {one.table for one in placement.stretches if one.num_rows < placement.table_rows[one.table]}
        everywhere = sum(placement.replicated)
        whole = placement.num_tables - everywhere - len(cut)
        most = max(held_bytes(placement, loads, rank) for rank in ranks)
        sizes = format_size(most), format_size(sum(load.num_bytes for load in loads))
        return (
            f"tables: {everywhere} on every rank, {whole} whole on one, {len(cut)} cut over "
            f"{counted(len(ranks), 'rank')}; up to {sizes[0]} of {sizes[1]} on a rank"
        )

    def largest(self, values: Tensor) -> Tensor:
        """Returns the largest of all ranks for each table f32[T]; NaN where any rank has one."""
        return torch.from_numpy(self._transport.allgather_small(values.numpy()).max(axis=0))

    def total(self, counts: Tensor) -> Tensor:
        """Sums what the ranks counted in the rows of each table f64[T, n]; replicated tables count once."""
        own = counts.numpy().copy()
        if self._transport.rank:
            own[np.array(self.placement.replicated)] = 0
        return torch.from_numpy(self._transport.allgather_small(own).sum(axis=0))

    def whole(self, tensor: Tensor) -> HeldTensor:
        """Describes a tensor with the rows of all tables that this process holds, one table after the other."""
        first_rows = list(accumulate(self.placement.table_rows, initial=0))
        held, at = [], 0
        for first, (first_held, count) in zip(first_rows, self.held, strict=False):
            if count:
                held.append(HeldPart(first + first_held, count, at))
            at += count
        owned = [
            OwnedPart(first_rows[one.table] + one.first_row, one.num_rows, one.rank) for one in self.placement.owned
        ]
        return HeldTensor(tensor, first_rows[-1], _joined_held(held), _joined_owned(owned))


def held_tensors(tensors: Mapping[str, Tensor], shards: Shards | None) -> dict[str, Stored]:
    """Describes those tensors that have a row for each row of the tables as held in parts, where they are."""
    if shards is None:
        return dict(tensors)
    return {name: shards.whole(tensor) if name in _OF_ROWS else tensor for name, tensor in tensors.items()}


def select_shards(config: Config, transport: Transport) -> Shards | None:
    """Places the tables as the configuration says; None where every process has all of them."""
    placement = placement_of(config, transport.size)
    return None if placement is None else Shards(placement, transport)


def _joined_held(parts: list[HeldPart]) -> tuple[HeldPart, ...]:
    """Joins parts that touch each other: what is written to one file may lie in several tables."""
    joined: list[HeldPart] = []
    for part in parts:
        if joined and joined[-1].end == part.first_row:
            joined[-1] = joined[-1]._replace(num_rows=joined[-1].num_rows + part.num_rows)
        else:
            joined.append(part)
    return tuple(joined)


def _joined_owned(parts: list[OwnedPart]) -> tuple[OwnedPart, ...]:
    joined: list[OwnedPart] = []
    for part in parts:
        if joined and joined[-1].rank == part.rank:
            joined[-1] = joined[-1]._replace(num_rows=joined[-1].num_rows + part.num_rows)
        else:
            joined.append(part)
    return tuple(joined)
