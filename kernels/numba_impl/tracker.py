"""The tracker that the numba updates maintain: owns the memory that `bounds` speaks of."""

import torch
from torch import Tensor

from ..types import Tables
from .arena import arena_of
from .bounds import BLOCK_SHIFT, GROUP_SHIFT, LINE_SHIFT, Bounds, fill_bounds

_LINE_BOUNDS = 1 << (LINE_SHIFT - BLOCK_SHIFT)


class BoundsTracker:
    """Implements `interface.Tracker`; about 0.1% of the tables' memory at D = 16."""

    def __init__(self, tables: Tables) -> None:
        num_rows = tables.row_offset.diff()
        block_start, group_start = _starts(num_rows, BLOCK_SHIFT, _LINE_BOUNDS), _starts(num_rows, GROUP_SHIFT, 1)
        self._memory = (
            torch.zeros(int(block_start[-1]), dtype=torch.int32),
            block_start,
            torch.zeros(int(group_start[-1]), dtype=torch.int32),
            group_start,
            torch.zeros(tables.num_tables, dtype=torch.int32),
            torch.zeros(tables.num_tables, dtype=torch.int64),
        )
        self.bounds = Bounds(*(part.data_ptr() for part in self._memory))
        self._absmax = self._memory[4].view(torch.float32)
        self.rebuild(tables)

    def absmax(self) -> Tensor:
        # A copy: a scale that is in use must not move with the next update.
        return self._absmax.clone()

    def rebuild(self, tables: Tables) -> None:
        fill_bounds(arena_of(tables), self.bounds)


def _starts(num_rows: Tensor, shift: int, multiple: int) -> Tensor:
    """int64[T + 1]: where each table's pieces of 2^shift rows begin; what lies between tables are pieces of no rows."""
    starts = torch.zeros(num_rows.numel() + 1, dtype=torch.int64)
    num_pieces = (num_rows + (1 << shift) - 1) >> shift
    torch.cumsum((num_pieces + multiple - 1) // multiple * multiple, 0, out=starts[1:])
    return starts
