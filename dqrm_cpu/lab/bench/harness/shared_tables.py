"""What contestants share: the tables of a case, gigabytes that do not fit into memory once for each; the first MLPs."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dqrm_cpu.config import Config
from dqrm_cpu.kernels.interface import Kernels, Tracker
from dqrm_cpu.kernels.master_rows import ROW_TYPES
from dqrm_cpu.kernels.select import select_kernels
from dqrm_cpu.kernels.table_groups import TableGroups
from dqrm_cpu.kernels.types import Tables
from dqrm_cpu.lab.bench.harness.cases import Case
from dqrm_cpu.model.layers import LayerParameters, initialize_, split_parameters
from dqrm_cpu.model.shapes import mlp_shapes
from dqrm_cpu.model.tables import allocate_groups

CPU = torch.device("cpu")


class SharedTables:
    """Two sets of FP32 tables per case, and one of rows of each other form; each made when it is first asked for.

    What a step costs does not depend on the weights, so contestants may train the same tables in turn. Only a tracker
    must see every change: contestants that keep one share tables, and the tracker, of their own.
    """

    COUNT = 3  # those in fewer bits are smaller together than another one

    def __init__(self, case: Case) -> None:
        self.kernels: Kernels = select_kernels("auto", CPU)
        self._case = case
        self._untracked: TableGroups | None = None
        self._tracked: dict[str, tuple[TableGroups, tuple[Tracker, ...]]] = {}

    def untracked_groups(self) -> TableGroups:
        """Returns tables that anyone may change, those of each dimension in an arena."""
        if self._untracked is None:
            self._untracked = self._make_groups("fp32")
        return self._untracked

    def tracked_groups(self, master_rows: str = "fp32") -> tuple[TableGroups, tuple[Tracker, ...]]:
        """Returns tables that may only be changed through the kernels with these trackers, one of each arena."""
        if master_rows not in self._tracked:
            groups = self._make_groups(master_rows)
            self._tracked[master_rows] = groups, tuple(self.kernels.make_tracker(group.tables) for group in groups)
        return self._tracked[master_rows]

    def untracked(self) -> Tables:
        """Returns tables of one dimension that anyone may change."""
        return self.untracked_groups().only

    def tracked(self) -> tuple[Tables, Tracker]:
        """Returns tables of one dimension that may only be changed through the kernels with this tracker."""
        groups, (tracker,) = self.tracked_groups()
        return groups.only, tracker

    def _make_groups(self, master_rows: str) -> TableGroups:
        config = self._case.config
        groups = allocate_groups(config.model.table_rows, config.model.dims, CPU, dtype=ROW_TYPES[master_rows])
        for group in groups:
            self.kernels.init_uniform_(group.tables, config.seed)
        return groups


@dataclass(frozen=True)
class InitialMlps:
    """Fresh weights in the layout of `Dlrm.dense`, and views of each layer in it."""

    flat: Tensor
    bottom: Sequence[LayerParameters]
    top: Sequence[LayerParameters]


def initial_mlps(config: Config) -> InitialMlps:
    """Draws the MLPs that every contestant starts from: the same for the same seed."""
    shapes = mlp_shapes(config)
    flat = torch.zeros(shapes.num_parameters)
    initialize_(shapes, flat, torch.Generator().manual_seed(config.seed))
    bottom, _, _, top = shapes.by_part(split_parameters(flat, shapes.layers))
    return InitialMlps(flat, bottom, top)
