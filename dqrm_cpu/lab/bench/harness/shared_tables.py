"""What contestants share: the tables of a case, gigabytes that do not fit into memory once for each; the first MLPs."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dqrm_cpu.config import Config
from dqrm_cpu.kernels.interface import Kernels, Tracker
from dqrm_cpu.kernels.select import select_kernels
from dqrm_cpu.kernels.types import Tables
from dqrm_cpu.lab.bench.harness.cases import Case
from dqrm_cpu.model.layers import LayerParameters, initialize_, mlp_shapes, split_parameters
from dqrm_cpu.model.tables import allocate_tables

CPU = torch.device("cpu")


class SharedTables:
    """Two sets of tables per case, each made when it is first asked for.

    What a step costs does not depend on the weights, so contestants may train the same tables in turn. Only a tracker
    must see every change: contestants that keep one share tables, and the tracker, of their own.
    """

    COUNT = 2

    def __init__(self, case: Case) -> None:
        self.kernels: Kernels = select_kernels("auto", CPU)
        self._case = case
        self._untracked: Tables | None = None
        self._tracked: tuple[Tables, Tracker] | None = None

    def untracked(self) -> Tables:
        """Returns tables that anyone may change."""
        if self._untracked is None:
            self._untracked = self._make_tables()
        return self._untracked

    def tracked(self) -> tuple[Tables, Tracker]:
        """Returns tables that may only be changed through the kernels with this tracker."""
        if self._tracked is None:
            tables = self._make_tables()
            self._tracked = tables, self.kernels.make_tracker(tables)
        return self._tracked

    def _make_tables(self) -> Tables:
        config = self._case.config
        tables = allocate_tables(config.model.table_rows, config.model.embedding_dim, CPU)
        self.kernels.init_uniform_(tables, config.seed)
        return tables


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
