"""Contestants that carry the gradients of all tables: from what a backward leaves to the sum over the ranks."""

from collections.abc import Mapping
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor

from dqrm_cpu.bench.contestant import AbsentError
from dqrm_cpu.bench.exchange import FUSED, PER_TABLE, contestant_name
from dqrm_cpu.bench.exchange_ours import OurExchange
from dqrm_cpu.bench.pool import Work
from dqrm_cpu.comm.exchange.gradient_exchange import GradientShape, open_exchange
from dqrm_cpu.comm.exchange.settings import ExchangeSettings
from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.config import ModelConfig
from dqrm_cpu.errors import ConfigError
from dqrm_cpu.kernels.interface import Kernels
from dqrm_cpu.kernels.types import Bags, SparseGrad, Tables
from dqrm_cpu.profile.spans import Spans

_GRADIENT_SIZE = 1e-3


class TableMaterial:
    """What contestants of one rank share: a pooled gradient, and the tables' shape without their memory."""

    def __init__(self, model: ModelConfig, batch_size: int, rank: int, kernels: Kernels) -> None:
        generator = torch.Generator().manual_seed(1 + rank)
        num_features = 1 + len(model.table_rows)
        pooled = torch.randn(batch_size, num_features, model.embedding_dim, generator=generator)
        offsets = torch.tensor([0, *accumulate(model.table_rows)])
        self.kernels = kernels
        self.grad_features = pooled.mul_(_GRADIENT_SIZE)
        self.tables = Tables(torch.empty(0, model.embedding_dim), offsets)
        self.table_rows = model.table_rows

    def coalesce(self, work: Work) -> SparseGrad:
        return self.kernels.coalesce(self.tables, Bags(work.batch.ids, None), self.grad_features)


class OurTables(OurExchange):
    """Coalesce, and one of our wires over one of our transports."""

    def __init__(self, material: TableMaterial, transport: Transport, wire: str) -> None:
        self.name = contestant_name(transport.name, wire)
        self.about = f"rows coalesced, all tables in one message, comm.wire {wire} over {transport.name}"
        self._material, self._transport, self._wire = material, transport, wire
        self.spans = Spans()

    def setup(self) -> None:
        self.spans = Spans()
        tables, kernels = self._material.tables, self._material.kernels
        shape = GradientShape(tables.row_offset, tables.dim, num_parameters=1)
        settings = ExchangeSettings(wire=self._wire, overlap="off")
        try:
            self._exchange = open_exchange(settings, self._transport, 1, shape, kernels.merge_sparse, self.spans)
        except ConfigError as error:
            raise AbsentError(str(error)) from error

    def step(self, work: Work) -> Tensor:
        """f32[N, D] of all unique rows."""
        assert self._exchange is not None
        self.spans.begin_step()
        with self.spans.coalesce:
            grad = self._material.coalesce(work)
        values = self._exchange.tables.begin([grad])().values
        self.spans.step_done()
        return values


class TorchTables:
    """torch.distributed.all_reduce of sparse COO tensors over gloo; what it sends is computed, not counted."""

    def __init__(self, material: TableMaterial, ranks: int, fused: bool) -> None:
        self.name = FUSED if fused else PER_TABLE
        self.about = "torch.distributed.all_reduce over gloo of a sparse COO tensor " + (
            "of all tables one below the other" if fused else "of each table, as the paper's authors do"
        )
        self._material, self._ranks, self._fused = material, ranks, fused
        self._grads: list[Tensor] = []
        self.spans = Spans()

    def setup(self) -> None:
        if not dist.is_initialized():
            raise AbsentError("gloo is not among the transports")
        self.spans = Spans()
        tables = self._material.grad_features[:, 1:].transpose(0, 1)
        self._grads = [tables.flatten(0, 1).contiguous()] if self._fused else [grad.contiguous() for grad in tables]

    def step(self, work: Work) -> Tensor:
        """f32[N, D] of all unique rows."""
        reduced = [gradient.coalesce().values() for gradient in self._gradients(work, reduce=True)]
        return torch.cat(reduced)

    def bytes_sent(self, work: Work) -> Mapping[str, int]:
        own = [gradient.coalesce() for gradient in self._gradients(work, reduce=False)]
        others = self._ranks - 1
        indices = sum(gradient.indices().nbytes for gradient in own) * others
        return {"indices": indices, "values": sum(gradient.values().nbytes for gradient in own) * others}

    def teardown(self) -> None:
        self._grads = []

    def _gradients(self, work: Work, reduce: bool) -> list[Tensor]:
        """What autograd leaves of a sparse EmbeddingBag with one id per bag, summed over the ranks if asked."""
        offsets, dim = self._material.tables.row_offset, self._material.tables.dim
        if self._fused:
            ids, rows = [(work.long_ids + offsets[:-1, None]).view(-1)], [int(offsets[-1])]
        else:
            ids, rows = list(work.long_ids), list(self._material.table_rows)
        made = []
        for own, grad, num_rows in zip(ids, self._grads, rows, strict=True):
            gradient = torch.sparse_coo_tensor(own[None], grad, (num_rows, dim), check_invariants=False)
            if reduce:
                dist.all_reduce(gradient)
            made.append(gradient)
        return made
