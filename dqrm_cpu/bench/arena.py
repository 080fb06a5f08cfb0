"""The tables that contestants share: gigabytes, which would not fit into memory once for each of them."""

import torch

from dqrm_cpu.bench.cases import Case
from dqrm_cpu.kernels.interface import Kernels, Tracker
from dqrm_cpu.kernels.select import select_kernels
from dqrm_cpu.kernels.types import Tables
from dqrm_cpu.model.tables import allocate_tables

CPU = torch.device("cpu")


class Arenas:
    """Two sets of tables per case, each made when it is first asked for.

    What a step costs does not depend on the weights, so contestants may train the same tables in turn. Only a tracker
    must see every change: contestants that keep one share tables, and the tracker, of their own.
    """

    COUNT = 2

    def __init__(self, case: Case) -> None:
        self.kernels: Kernels = select_kernels("auto", CPU)
        self._case = case
        self._shared: Tables | None = None
        self._tracked: tuple[Tables, Tracker] | None = None

    def shared(self) -> Tables:
        """Tables that anyone may change."""
        if self._shared is None:
            self._shared = self._make_tables()
        return self._shared

    def tracked(self) -> tuple[Tables, Tracker]:
        """Tables that may only be changed through the kernels with this tracker."""
        if self._tracked is None:
            tables = self._make_tables()
            self._tracked = tables, self.kernels.make_tracker(tables)
        return self._tracked

    def _make_tables(self) -> Tables:
        config = self._case.config
        tables = allocate_tables(config.model.table_rows, config.model.embedding_dim, CPU)
        self.kernels.init_uniform_(tables, config.seed)
        return tables
