"""Contestants that carry gradients between ranks: those of all tables, and those of both MLPs."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor

from dqrm_cpu.comm.exchange.gradient_exchange import GradientExchange, GradientShape, TableShape, open_exchange
from dqrm_cpu.comm.exchange.settings import ExchangeSettings
from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.config import ModelConfig
from dqrm_cpu.errors import ConfigError
from dqrm_cpu.kernels.interface import Kernels
from dqrm_cpu.kernels.types import Bags, SparseGrad, Tables
from dqrm_cpu.lab.bench.exchange.exchange_benchmark import FUSED, MLP_FORMS, PER_TABLE, contestant_name
from dqrm_cpu.lab.bench.harness.batch_pool import Work
from dqrm_cpu.lab.bench.harness.contestant import AbsentError
from dqrm_cpu.model.workspace import DenseGradients
from dqrm_cpu.timing.spans import Spans

_GRADIENT_SIZE = 1e-3


class TableGradients:
    """The inputs that one rank's contestants share: a pooled gradient, and the tables' shape without their memory."""

    def __init__(self, model: ModelConfig, batch_size: int, rank: int, kernels: Kernels) -> None:
        generator = torch.Generator().manual_seed(1 + rank)
        num_features = 1 + len(model.table_rows)
        pooled = torch.randn(batch_size, num_features, model.embedding_dim, generator=generator)
        offsets = torch.tensor([0, *accumulate(model.table_rows)])
        self.kernels = kernels
        self.grad_features = pooled.mul_(_GRADIENT_SIZE)
        self.tables = Tables(torch.empty(0, model.embedding_dim), offsets)
        self.table_rows = model.table_rows


class OurExchange(ABC):
    """A contestant that carries gradients over our wires; bytes are counted from the messages of a step."""

    _exchange: GradientExchange | None = None

    @abstractmethod
    def step(self, work: Work) -> Tensor:
        """Carries the gradients once and returns their sum."""

    def bytes_sent(self, work: Work) -> Mapping[str, int]:
        """Takes a step and returns what this rank sent for the others, by part of the message."""
        assert self._exchange is not None
        before = self._exchange.sent
        self.step(work)
        return self._exchange.sent.minus(before)._asdict()

    def teardown(self) -> None:
        self._exchange = None


class OurTables(OurExchange):
    """Coalesces the gradients of all tables, and carries them over one of our wires and one of our transports."""

    def __init__(self, gradients: TableGradients, transport: Transport, wire: str) -> None:
        self.name = contestant_name(transport.name, wire)
        self.about = f"rows coalesced, all tables in one message, comm.wire {wire} over {transport.name}"
        self._gradients, self._transport, self._wire = gradients, transport, wire
        self.spans = Spans()

    def setup(self) -> None:
        self.spans = Spans()
        tables, kernels = self._gradients.tables, self._gradients.kernels
        shape = GradientShape((TableShape(tables.row_offset, tables.dim),), num_parameters=1)
        settings = ExchangeSettings(wire=self._wire, overlap="off")
        try:
            self._exchange = open_exchange(settings, self._transport, 1, shape, kernels.merge_sparse, self.spans)
        except ConfigError as error:
            raise AbsentError(str(error)) from error

    def step(self, work: Work) -> Tensor:
        """Returns f32[N, D] of all unique rows."""
        assert self._exchange is not None
        gradients = self._gradients
        self.spans.begin_step()
        with self.spans.coalesce:
            grad = gradients.kernels.coalesce(gradients.tables, Bags(work.batch.ids, None), gradients.grad_features)
        values = self._exchange.begin_tables([[grad]])()[0].values
        self.spans.step_done()
        return values


class TorchTables:
    """torch.distributed.all_reduce of sparse COO tensors over gloo; what it sends is computed, not counted."""

    def __init__(self, gradients: TableGradients, ranks: int, fused: bool) -> None:
        self.name = FUSED if fused else PER_TABLE
        self.about = "torch.distributed.all_reduce over gloo of a sparse COO tensor " + (
            "of all tables one below the other" if fused else "of each table, as the paper's authors do"
        )
        self._gradients, self._ranks, self._fused = gradients, ranks, fused
        self._values: list[Tensor] = []

    def setup(self) -> None:
        if not dist.is_initialized():
            raise AbsentError("gloo is not among the transports")
        tables = self._gradients.grad_features[:, 1:].transpose(0, 1)
        self._values = [tables.flatten(0, 1).contiguous()] if self._fused else [grad.contiguous() for grad in tables]

    def step(self, work: Work) -> Tensor:
        """Returns f32[N, D] of all unique rows."""
        return torch.cat([gradient.coalesce().values() for gradient in self._sparse_tensors(work, reduce=True)])

    def bytes_sent(self, work: Work) -> Mapping[str, int]:
        """Computes what this rank would hand to the others, from its coalesced tensors."""
        own = [gradient.coalesce() for gradient in self._sparse_tensors(work, reduce=False)]
        others = self._ranks - 1
        indices = sum(gradient.indices().nbytes for gradient in own) * others
        return {"indices": indices, "values": sum(gradient.values().nbytes for gradient in own) * others}

    def teardown(self) -> None:
        self._values = []

    def _sparse_tensors(self, work: Work, reduce: bool) -> list[Tensor]:
        """Makes what autograd leaves of a sparse EmbeddingBag with one id per bag, summed over the ranks if asked."""
        offsets, dim = self._gradients.tables.row_offset, self._gradients.tables.dim
        if self._fused:
            ids, rows = [(work.long_ids + offsets[:-1, None]).view(-1)], [int(offsets[-1])]
        else:
            ids, rows = list(work.long_ids), list(self._gradients.table_rows)
        tensors = []
        for own, values, num_rows in zip(ids, self._values, rows, strict=True):
            tensor = torch.sparse_coo_tensor(own[None], values, (num_rows, dim), check_invariants=False)
            if reduce:
                dist.all_reduce(tensor)
            tensors.append(tensor)
        return tensors


class OurMlp(OurExchange):
    """A flat gradient of both MLPs in one of our forms. Includes a copy of it: the sum replaces what was summed."""

    def __init__(self, transport: Transport, name: str, num_parameters: int) -> None:
        form, feedback = MLP_FORMS[name]
        self.name = contestant_name(transport.name, name)
        self.about = f"comm.mlp-gradients {form}, error feedback {feedback}, over {transport.name}"
        self._transport, self._num_parameters = transport, num_parameters
        self._settings = ExchangeSettings(mlp_gradients=form, error_feedback=feedback)

    def setup(self) -> None:
        shape = GradientShape((), self._num_parameters)
        self._exchange = open_exchange(self._settings, self._transport, 1, shape, _no_tables)
        generator = torch.Generator().manual_seed(1 + self._transport.rank)
        size = self._num_parameters + DenseGradients.NUM_SCALARS
        self._source = torch.randn(size, generator=generator).mul_(_GRADIENT_SIZE)
        self._flat = torch.empty(size)

    def step(self, work: Work) -> Tensor:
        """Returns the summed gradient f32[P + scalars]."""
        assert self._exchange is not None
        self._flat.copy_(self._source)
        self._exchange.mlp.sum_([self._flat])
        return self._flat


def _no_tables(grads: object) -> SparseGrad:
    raise AssertionError("only MLPs travel here")
