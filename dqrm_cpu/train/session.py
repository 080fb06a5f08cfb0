"""The parts of a training run, built once from a configuration: model, scales, optimizer, step, evaluator, loaders."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from dqrm_cpu.comm.exchange.settings import ExchangeSettings
from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.config import Config, QuantConfig
from dqrm_cpu.data.loader import Loader
from dqrm_cpu.data.shards import shards_of
from dqrm_cpu.data.source import DataSet, Part
from dqrm_cpu.errors import DeviceError
from dqrm_cpu.kernels.interface import Kernels, KernelsUnavailableError
from dqrm_cpu.kernels.select import select_kernels
from dqrm_cpu.model.dlrm import Dlrm
from dqrm_cpu.model.memory import DATA_CACHE_BYTES
from dqrm_cpu.quant.learned import LearnedTableScales
from dqrm_cpu.quant.scale import Scales, TableScales
from dqrm_cpu.quant.select import learned_formula
from dqrm_cpu.train.checkpoint import load_checkpoint
from dqrm_cpu.train.checkpoint_manifest import read_manifest
from dqrm_cpu.train.evaluator import Evaluator
from dqrm_cpu.train.optimizers import Optimizer, select_optimizer
from dqrm_cpu.train.state import RunState
from dqrm_cpu.train.step import TrainingStep

_LEAST_TO_HIDE_BYTES = 2 << 20
"""Below, handing a message to its thread and back was measured to cost more than it hides."""


@dataclass(frozen=True)
class Loaders:
    """Batches of each part of the data."""

    train: Loader
    validation: Loader
    test: Loader


@dataclass(frozen=True)
class Session:
    """Everything that a loop drives and a checkpoint holds."""

    model: Dlrm
    scales: Scales
    optimizer: Optimizer
    step: TrainingStep
    evaluate: Evaluator
    loaders: Loaders

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint stores, by name; the tensors themselves, to be read (after `gather`) or filled."""
        return {**self.model.weights(), **self.scales.tensors(), **self.optimizer.state(), **self.step.state()}

    def gather(self) -> None:
        """Brings together what only other ranks hold of `tensors`; all ranks call it."""
        self.step.gather_state()


def load_kernels(config: Config, device: torch.device) -> Kernels:
    """The implementation that the configuration names; fails before anything is allocated or written."""
    try:
        return select_kernels(config.kernels, device)
    except KernelsUnavailableError as error:
        raise DeviceError(str(error)) from error


def load_session(session: Session, path: Path) -> RunState:
    """Fills the session from the checkpoint at `path`; returns where that run stood."""
    tensors = session.tensors()
    state = RunState.from_dict(load_checkpoint(path, tensors))
    restore_scales(session, tensors, state)
    return state


def load_weights(session: Session, path: Path) -> None:
    """Only what a prediction needs, from a checkpoint of any method and optimizer.

    Scales that this session would learn and the checkpoint does not have stay where training would start them; those
    of activations are found from training rows. All ranks call it.
    """
    stored, weights = read_manifest(path).tensors, session.model.weights()
    into = {name: weights[name] for name in weights if name in stored or name not in ("scales", "activations")}
    state = RunState.from_dict(load_checkpoint(path, into, allow_unused=True))
    session.scales.tables_loaded(state.scale_refreshed_at)
    if "activations" in weights and "activations" not in stored:
        session.model.inputs.forget()
        session.evaluate.calibrate(session.loaders.train)


def restore_scales(session: Session, tensors: Mapping[str, Tensor], state: RunState) -> None:
    """After `tensors` (of `session.tensors()`) were filled from a checkpoint."""
    session.scales.restore(tensors, state.scale_refreshed_at)


def open_scales(quant: QuantConfig, model: Dlrm) -> Scales:
    """The tables' scales: parameters of the model where the method learns them, else found from max|W|."""
    learned = learned_formula(quant, quant.embedding_bits)
    if learned is not None:
        return LearnedTableScales(learned, model.tables, model.scales)
    return TableScales(quant, model.kernels, model.tables)


def quantized_from(quant: QuantConfig, batches_per_epoch: int) -> float:
    """The first iteration that trains the quantized model."""
    return math.inf if quant.method == "ptq" else quant.pretrain_epochs * batches_per_epoch


def build_session(
    config: Config, kernels: Kernels, data: DataSet, transport: Transport, device: torch.device
) -> Session:
    """Allocates and initializes the model; the same on every rank."""
    shards = shards_of(transport.rank, transport.size, config.comm.simulated_ranks)
    model = Dlrm(config, kernels, device)
    model.initialize_(config.seed)
    scales = open_scales(config.quant, model)
    optimizer = select_optimizer(config.train, model)
    train = config.train

    def loader(part: Part, batch_size: int, name: str) -> Loader:
        return Loader(part, batch_size, shards, device, DATA_CACHE_BYTES, part_name=name)

    def largest_share(batch_size: int) -> int:
        return -(-batch_size // shards.total)

    train_loader = loader(data.train, train.batch_size, "training")
    skips_bad = train.on_bad_batch == "skip"
    first_quantized = quantized_from(config.quant, train_loader.num_batches)
    return Session(
        model,
        scales,
        optimizer,
        TrainingStep(
            model,
            scales,
            optimizer,
            transport,
            len(shards.mine),
            largest_share(train.batch_size),
            exchange_settings(config),
            first_quantized,
            skips_bad,
        ),
        Evaluator(model, scales, transport, largest_share(train.test_batch_size), skips_bad),
        Loaders(
            train_loader,
            loader(data.validation, train.test_batch_size, "validation"),
            loader(data.test, train.test_batch_size, "test"),
        ),
    )


def exchange_settings(config: Config) -> ExchangeSettings:
    """Returns what the gradients of a run look like between ranks."""
    settings = ExchangeSettings.of(config.comm, config.seed)
    if settings.overlap == "auto" and _vector_bytes(config) < _LEAST_TO_HIDE_BYTES:
        return replace(settings, overlap="off")
    return settings


def _vector_bytes(config: Config) -> int:
    """Returns the bytes of the vectors that a batch looks up, one id per table."""
    return 4 * config.train.batch_size * len(config.model.table_rows) * config.model.embedding_dim
