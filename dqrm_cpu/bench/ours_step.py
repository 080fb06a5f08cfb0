"""Our own training step as contestants: the one that `dqrm-cpu train` runs, on shared tables."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dqrm_cpu.bench.arena import CPU, Arenas
from dqrm_cpu.bench.contestant import AbsentError
from dqrm_cpu.bench.ipex import load_ipex_kernels
from dqrm_cpu.bench.pool import Work
from dqrm_cpu.bench.weights import initial_mlps
from dqrm_cpu.comm.exchange.settings import ExchangeSettings
from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.comm.transports.single import SingleTransport
from dqrm_cpu.config import Config
from dqrm_cpu.kernels.interface import Kernels
from dqrm_cpu.model.dlrm import Dlrm
from dqrm_cpu.profile.hardware import fingerprint
from dqrm_cpu.profile.spans import Spans
from dqrm_cpu.quant.scale import TableScales
from dqrm_cpu.train.optimizers import Optimizer, select_optimizer
from dqrm_cpu.train.step import TrainingStep

NEVER_AGAIN = 2**62
"""A scale period that no benchmark reaches: the scale is found at the first step and kept."""


class OursStep:
    """`TrainingStep` of this process under one configuration; over a transport, as one of its ranks."""

    def __init__(
        self,
        name: str,
        about: str,
        config: Config,
        arenas: Arenas,
        transport: Transport | None = None,
        spans: Spans | None = None,
    ) -> None:
        self.name, self.about = name, about
        self._config, self._arenas = config, arenas
        self._transport = SingleTransport() if transport is None else transport
        self._given_spans = spans
        self._iteration = 0
        self._step: TrainingStep | None = None

    def setup(self) -> None:
        _require_precision(self._config.train.precision)
        kernels = load_ipex_kernels() if self._config.kernels == "ipex" else self._arenas.kernels
        self._step = make_parts(self._config, self._arenas, kernels, self._transport, self._given_spans).step

    def step(self, work: Work) -> Tensor:
        """The loss of the batch before the update."""
        assert self._step is not None
        train = self._config.train
        batch = work.batch
        global_batch = batch.size * self._transport.size
        outcome = self._step(self._iteration, [batch], global_batch, train.learning_rate, stop_requested=False)
        self._iteration += 1
        return torch.tensor(outcome.loss)

    def teardown(self) -> None:
        self._step = None


@dataclass(frozen=True)
class Parts:
    """What a step is made of."""

    model: Dlrm
    scales: TableScales
    optimizer: Optimizer
    step: TrainingStep


def make_parts(
    config: Config, arenas: Arenas, kernels: Kernels, transport: Transport, spans: Spans | None = None
) -> Parts:
    """On the shared tables."""
    model, scales = model_on_shared_tables(config, arenas, kernels, spans)
    optimizer = select_optimizer(config.train, model)
    exchange = ExchangeSettings(wire=config.comm.wire, overlap=config.comm.overlap)
    step = TrainingStep(model, scales, optimizer, transport, 1, config.train.batch_size, exchange)
    return Parts(model, scales, optimizer, step)


def model_on_shared_tables(
    config: Config, arenas: Arenas, kernels: Kernels, spans: Spans | None = None
) -> tuple[Dlrm, TableScales]:
    """A model that trains the tables of `arenas` instead of its own."""
    # As many tables as the shared ones, which take their place, but without their gigabytes.
    placeholder = replace(config.model, table_rows=(1,) * len(config.model.table_rows))
    model = Dlrm(replace(config, model=placeholder), kernels, CPU, spans)
    tracked = config.quant.method != "none" and config.quant.scale_finder == "track"
    if tracked:
        model.tables, tracker = arenas.tracked()
        scales = TableScales(replace(config.quant, scale_finder="scan"), kernels, model.tables)
        scales.tracker = tracker
    else:
        model.tables = arenas.shared()
        scales = TableScales(config.quant, kernels, model.tables)
    model.dense.copy_(initial_mlps(config).flat)
    return model, scales


def _require_precision(precision: str) -> None:
    isa = fingerprint().isa
    if precision == "bf16" and not {"avx512_bf16", "amx_tile"} & set(isa):
        raise AbsentError("bf16 needs AVX512-BF16 or AMX, this CPU has neither: torch would emulate it")
