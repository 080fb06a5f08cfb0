"""The tracker that the numba updates maintain: see `bounds`."""

import torch
from torch import Tensor

from ..types import Tables
from .bounds import Bounds, allocate_bounds, fill_bounds


class BoundsTracker:
    """Implements `interface.Tracker`; the update kernels write into `bounds`."""

    def __init__(self, tables: Tables) -> None:
        self.bounds: Bounds = allocate_bounds(tables.row_offset.numpy())
        self._top = torch.from_numpy(self.bounds.top).view(torch.float32)
        self.rebuild(tables)

    def absmax(self) -> Tensor:
        # A copy: a scale that is in use must not move with the next update.
        return self._top.clone()

    def rebuild(self, tables: Tables) -> None:
        fill_bounds(tables.weight.numpy(), tables.row_offset.numpy(), self.bounds)
