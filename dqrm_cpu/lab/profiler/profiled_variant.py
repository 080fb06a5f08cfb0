"""What is run beside the configuration, and how any of it is run step by step."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from dqrm_cpu.comm.exchange.settings import NOTHING_SENT, SentBytes
from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.config import Config
from dqrm_cpu.data.batch import rank_shares
from dqrm_cpu.data.loader import Loader
from dqrm_cpu.data.source import DataSet
from dqrm_cpu.errors import ConfigError
from dqrm_cpu.kernels.types import Tables
from dqrm_cpu.lab.bench.harness.shared_tables import CPU, SharedTables
from dqrm_cpu.lab.bench.step.our_step import model_on_shared_tables
from dqrm_cpu.model.size import DATA_CACHE_BYTES
from dqrm_cpu.timing.spans import Observer, Spans
from dqrm_cpu.train.optimizers import select_optimizer
from dqrm_cpu.train.session import exchange_settings
from dqrm_cpu.train.step import TrainingStep

_COMPARED_WIRES = ("sparse", "int8-fp32", "int8")


@dataclass(frozen=True)
class TrainingVariant:
    """One way to train, to be profiled."""

    name: str
    about: str
    config: Config
    scan: Callable[[Tables], Tensor] | None = None  # instead of the kernels' own


def variants_of(config: Config, num_ranks: int, *, compare: bool) -> list[TrainingVariant]:
    """Lists the configuration, and with `compare` those that it is to be seen beside, as in the paper's figure 1c."""
    if config.comm.tables == "shard":
        raise ConfigError("a profile shares one copy of all tables among its variants: set comm.tables to replicate")
    own = TrainingVariant("this configuration", "as asked for", config)
    return [own, *_compared(config, num_ranks)] if compare else [own]


def _compared(config: Config, num_ranks: int) -> Iterator[TrainingVariant]:
    quant = replace(config.quant, method="dqrm", scale_period=1)
    scanned = replace(config, quant=replace(quant, scale_finder="scan"))
    yield TrainingVariant("FP32", "not quantized", replace(config, quant=replace(quant, method="none")))
    yield TrainingVariant("QAT, torch.aminmax", "period 1; torch.aminmax over every table", scanned, aminmax_scan)
    yield TrainingVariant("QAT, our scan", "period 1; our parallel scan of every table", scanned)
    tracked = replace(config, quant=replace(quant, scale_finder="track"))
    yield TrainingVariant("QAT, tracked", "period 1; max|W| tracked by the updates", tracked)
    if num_ranks > 1:
        for wire in _COMPARED_WIRES:
            comm = replace(tracked.comm, wire=wire)
            yield TrainingVariant(f"wire {wire}", f"tracked, table gradients as {wire}", replace(tracked, comm=comm))


def aminmax_scan(tables: Tables) -> Tensor:
    """Finds max|W| the paper's way with PyTorch's fastest operation: each table by itself."""
    offsets = tables.row_offset.tolist()
    extremes = [torch.aminmax(tables.values(a, b)) for a, b in pairwise(offsets)]
    return torch.stack([torch.maximum(-both.min, both.max) for both in extremes])


class ProfiledVariant:
    """A variant that is run step by step and timed by spans of its own.

    All variants of a profile share their tables: what a step costs does not depend on the weights.
    """

    def __init__(
        self,
        variant: TrainingVariant,
        data: DataSet,
        shared: SharedTables,
        transport: Transport,
        observer: Observer | None,
    ) -> None:
        self.variant = variant
        self.spans = Spans(observer)
        config = self._config = variant.config
        shares = self._shares = rank_shares(transport.rank, transport.size, config.comm.simulated_ranks)
        self.model, scales = model_on_shared_tables(config, shared, shared.kernels, self.spans)
        if variant.scan is not None:
            scales.scan = variant.scan
        reading = self.spans.aside("read ahead")
        self._loader = Loader(data.train, config.train.batch_size, shares, CPU, DATA_CACHE_BYTES, reading)
        self._step = TrainingStep(
            self.model,
            scales,
            select_optimizer(config.train, self.model),
            transport,
            len(shares.mine),
            -(-config.train.batch_size // shares.total),
            exchange_settings(config),
        )
        self.num_steps = 0  # so far
        self._sent_before = NOTHING_SENT

    @property
    def sent(self) -> SentBytes:
        """The bytes that this rank has sent since its counters were last reset."""
        return self._step.sent.minus(self._sent_before)

    def forget(self) -> None:
        """Forgets what was measured so far: it warmed up."""
        self._sent_before = self._step.sent
        self.spans.forget()

    def run(self, steps: int) -> None:
        """Takes the same steps as training does; batches follow from turn to turn."""
        for _ in range(steps):
            self.spans.begin_step()
            with self.spans.data:
                shares = self._loader.batches(self.num_steps)
            size, rate = self._loader.global_size(self.num_steps), self._config.train.learning_rate
            self._step(self.num_steps, shares, size, rate, stop_requested=False)
            self.spans.step_done()
            self.num_steps += 1
