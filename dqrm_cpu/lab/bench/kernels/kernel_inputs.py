"""What the contestants of a kernel case share beside the tables: gradients, features, views of the tables."""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from dqrm_cpu.kernels.interface import Kernels
from dqrm_cpu.kernels.types import Tables
from dqrm_cpu.lab.bench.harness.cases import Case
from dqrm_cpu.lab.bench.harness.shared_tables import SharedTables
from dqrm_cpu.quant.methods import uniform_scale

_GRADIENT_SIZE = 1e-3


class KernelInputs:
    """Inputs made for each contestant that asks: megabytes, not gigabytes. The same numbers each time."""

    def __init__(self, case: Case, shared: SharedTables) -> None:
        self.case, self.shared = case, shared
        self.kernels: Kernels = shared.kernels
        self.lr = case.config.train.learning_rate
        self.bits = case.config.quant.embedding_bits
        self.num_features = 1 + len(case.config.model.table_rows)
        self.dim = case.config.model.embedding_dim

    def features(self) -> Tensor:
        """Returns f32[B, F, D], as a bottom MLP and lookups would leave them."""
        return torch.randn(self.case.batch_size, self.num_features, self.dim, generator=self._generator())

    def grad_features(self) -> Tensor:
        """Returns f32[B, F, D], as an interaction would leave them."""
        return self.features().mul_(_GRADIENT_SIZE)

    def grad_interaction(self) -> Tensor:
        """Returns the gradient of the interaction's output f32[B, D + F (F - 1) / 2]."""
        width = self.dim + self.num_features * (self.num_features - 1) // 2
        return torch.randn(self.case.batch_size, width, generator=self._generator())

    def grad_tables(self) -> list[Tensor]:
        """Returns `grad_features` as T parts f32[B, D], contiguous: what plain PyTorch is given."""
        grad = self.grad_features()
        return [grad[:, 1 + table].contiguous() for table in range(self.num_features - 1)]

    def scales(self, tables: Tables) -> Tensor:
        """Returns the scales f32[T] of the tables as they are."""
        return uniform_scale(self.kernels.scan_absmax(tables), self.bits)

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.case.config.seed)


def views(tables: Tables, per_row: Tensor | None = None) -> Iterator[Tensor]:
    """Yields the rows of each table, or of another array with one entry per row."""
    array = tables.weight if per_row is None else per_row
    return (array[a:b] for a, b in pairwise(tables.row_offset.tolist()))
