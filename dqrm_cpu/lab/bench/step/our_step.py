"""Our own training step as contestants: the one that `dqrm-cpu train` runs, on shared tables."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dqrm_cpu.base.hardware import fingerprint, has_bf16_products, has_int8_products
from dqrm_cpu.comm.exchange.settings import ExchangeSettings
from dqrm_cpu.comm.exchange.table_exchange import open_channel
from dqrm_cpu.comm.sharding.placement import place_tables, table_loads
from dqrm_cpu.comm.sharding.row_exchange import RowExchange
from dqrm_cpu.comm.transport import SingleTransport, Transport
from dqrm_cpu.config import Config
from dqrm_cpu.kernels.interface import Kernels, KernelsUnavailableError
from dqrm_cpu.kernels.select import select_kernels
from dqrm_cpu.lab.bench.harness.batch_pool import Work
from dqrm_cpu.lab.bench.harness.contestant import AbsentError
from dqrm_cpu.lab.bench.harness.shared_tables import CPU, SharedTables, initial_mlps
from dqrm_cpu.model.dlrm import Dlrm
from dqrm_cpu.quant.scale import TableScales
from dqrm_cpu.timing.spans import Spans
from dqrm_cpu.train.optimizers import Optimizer, select_optimizer
from dqrm_cpu.train.shards import Shards
from dqrm_cpu.train.step import TrainingStep
from dqrm_cpu.train.step_rows import Upcoming

NEVER_AGAIN = 2**62
"""A scale period that no benchmark reaches: the scale is found at the first step and kept."""


class OurStep:
    """The training step of this process under one configuration; over a transport, as one of its ranks.

    Where `comm.tables` is shard, it holds its part of tables of its own instead of the shared ones.
    """

    def __init__(
        self,
        name: str,
        about: str,
        config: Config,
        shared: SharedTables,
        transport: Transport | None = None,
        spans: Spans | None = None,
    ) -> None:
        self.name, self.about = name, about
        self._config, self._shared = config, shared
        self._transport = SingleTransport() if transport is None else transport
        self._given_spans = spans
        self._iteration = 0
        self._step: TrainingStep | None = None

    def setup(self) -> None:
        _require_precision(self._config.train.precision)
        kernels = load_ipex_kernels() if self._config.kernels == "ipex" else self._shared.kernels
        if self._config.comm.tables == "shard":
            parts = build_sharded_step(self._config, kernels, self._transport)
        else:
            parts = build_step(self._config, self._shared, kernels, self._transport, self._given_spans)
        self._step = parts.step

    def step(self, work: Work, upcoming: Upcoming | None = None) -> Tensor:
        """Trains on the batch and returns its loss before the update; `upcoming` as of a TrainingStep."""
        assert self._step is not None
        train = self._config.train
        batch = work.batch
        global_batch = batch.size * self._transport.size
        outcome = self._step(self._iteration, [batch], global_batch, train.learning_rate, False, upcoming)
        self._iteration += 1
        return torch.tensor(outcome.loss)

    def teardown(self) -> None:
        self._step = None


@dataclass(frozen=True)
class StepParts:
    """A training step and what it is made of."""

    model: Dlrm
    scales: TableScales
    optimizer: Optimizer
    step: TrainingStep


def build_step(
    config: Config, shared: SharedTables, kernels: Kernels, transport: Transport, spans: Spans | None = None
) -> StepParts:
    """Makes a step that trains the shared tables, and what it is made of."""
    model, scales = model_on_shared_tables(config, shared, kernels, spans)
    return _step_parts(config, model, scales, transport)


def build_sharded_step(config: Config, kernels: Kernels, transport: Transport) -> StepParts:
    """Makes a step whose tables lie on the ranks of the transport; this rank's part of them is its own."""
    shards = Shards(place_tables(table_loads(config), transport.size), transport)
    model = Dlrm(config, kernels, CPU, held=shards.held)
    model.initialize_(config.seed)
    scales = TableScales(config.quant, kernels, model.groups, shards.largest)
    channel = open_channel(transport, config.comm.overlap, model.spans)
    rows = RowExchange(transport, shards.placement, model.tables, model.spans, channel)
    return _step_parts(config, model, scales, transport, rows)


def _step_parts(
    config: Config, model: Dlrm, scales: TableScales, transport: Transport, rows: RowExchange | None = None
) -> StepParts:
    optimizer = select_optimizer(config.train, model)
    exchange = ExchangeSettings(wire=config.comm.wire, overlap=config.comm.overlap)
    step = TrainingStep(model, scales, optimizer, transport, 1, config.train.batch_size, exchange, rows=rows)
    return StepParts(model, scales, optimizer, step)


def model_on_shared_tables(
    config: Config, shared: SharedTables, kernels: Kernels, spans: Spans | None = None
) -> tuple[Dlrm, TableScales]:
    """Makes a model that trains the shared tables, and their scales."""
    tracked = config.quant.method != "none" and config.quant.scale_finder == "track"
    rows = config.train.master_rows
    groups, trackers = shared.tracked_groups(rows) if tracked else (shared.untracked_groups(), None)
    model = Dlrm(config, kernels, CPU, spans, groups)
    # Without trackers of their own: the shared ones take their place.
    scales = TableScales(replace(config.quant, scale_finder="scan") if tracked else config.quant, kernels, model.groups)
    if trackers is not None:
        scales.trackers = trackers
    model.dense.copy_(initial_mlps(config).flat)
    return model, scales


def _require_precision(precision: str) -> None:
    if precision == "bf16" and not has_bf16_products(fingerprint().isa):
        raise AbsentError("bf16 needs AVX512-BF16 or AMX, this CPU has neither: torch would emulate it")
    if precision == "int8" and not has_int8_products(fingerprint().isa):
        raise AbsentError("int8 needs AVX512-VNNI, which this CPU has not")


def load_ipex_kernels() -> Kernels:
    """Returns the kernels that use IPEX's fused update; raises AbsentError where IPEX does not load."""
    # Importing IPEX replaces it, which would turn plain PyTorch's contestants into something else.
    embedding_bag = torch.embedding_bag
    try:
        return select_kernels("ipex", torch.device("cpu"))
    except KernelsUnavailableError as error:
        raise AbsentError(str(error)) from error
    finally:
        torch.embedding_bag = embedding_bag
