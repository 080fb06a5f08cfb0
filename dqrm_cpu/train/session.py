"""The parts of a training run, built once from a configuration: model, scales, optimizer, step, evaluator, loaders."""

import logging
import math
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from dqrm_cpu.comm.exchange.settings import ExchangeSettings
from dqrm_cpu.comm.exchange.table_exchange import open_channel
from dqrm_cpu.comm.sharding.row_exchange import RowExchange
from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.config import Config, QuantConfig
from dqrm_cpu.data.batch import rank_shares
from dqrm_cpu.data.loader import Loader
from dqrm_cpu.data.source import DataSet, Part, open_data
from dqrm_cpu.data.store.schema import DataIdentity
from dqrm_cpu.errors import DeviceError
from dqrm_cpu.kernels.interface import Kernels, KernelsUnavailableError
from dqrm_cpu.kernels.master_rows import ROW_TYPES
from dqrm_cpu.kernels.select import select_kernels
from dqrm_cpu.model.dlrm import Dlrm
from dqrm_cpu.model.size import DATA_CACHE_BYTES
from dqrm_cpu.model.tables import allocate_groups
from dqrm_cpu.quant.learned import LearnedTableScales
from dqrm_cpu.quant.methods import learned_formula
from dqrm_cpu.quant.scale import Scales, TableScales
from dqrm_cpu.train.checkpoint_files import load_checkpoint
from dqrm_cpu.train.checkpoint_folder import read_state
from dqrm_cpu.train.checkpoint_manifest import read_manifest
from dqrm_cpu.train.evaluator import Evaluator
from dqrm_cpu.train.held_tensor import Stored
from dqrm_cpu.train.optimizers import Optimizer, select_optimizer
from dqrm_cpu.train.same_ids import TrainedIds, require_same_ids
from dqrm_cpu.train.shards import Shards, held_tensors, select_shards
from dqrm_cpu.train.state import RunState
from dqrm_cpu.train.step import TrainingStep
from dqrm_cpu.train.weight_average import WeightAverage, snapshot_steps
from dqrm_cpu.train.working import ShowWork, unshown

_LOGGER = logging.getLogger(__name__)

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
    """The model, the data and all else that a loop drives and a checkpoint holds."""

    model: Dlrm
    scales: Scales
    optimizer: Optimizer
    step: TrainingStep
    evaluate: Evaluator
    loaders: Loaders
    shards: Shards | None = None  # None: every process has all tables
    average: WeightAverage | None = None  # None: what is scored and saved are the weights of training

    def tensors(self) -> dict[str, Tensor]:
        """Returns what a session consists of, by name; the tensors themselves, to be read (after `gather`) or filled.

        Of tables that lie on several ranks, what this one holds.
        """
        weights = self.model.weights() if self.average is None else self.average.tensors()
        return {**weights, **self.scales.tensors(), **self.optimizer.state(), **self.step.state()}

    def stored(self) -> dict[str, Stored]:
        """Returns what a checkpoint stores: `tensors`, those of which each rank has some rows described as such."""
        return held_tensors(self.tensors(), self.shards)

    def gather(self) -> None:
        """Completes `tensors`, also with what only other ranks hold; all ranks call it."""
        if self.average is not None:
            self.average.follow()
        self.step.gather_state()

    def restored(self, state: RunState) -> None:
        """Follows the tensors of a checkpoint, which were read, and the state of the run there."""
        self.model.is_corrected, self.model.table_draws = False, state.table_draws
        if self.average is not None:
            self.average.count = state.snapshots
        self.scales.restore(self.tensors(), state.scale_refreshed_at)

    def as_scored(self) -> AbstractContextManager[None]:
        """Lends the model the weights that are evaluated, saved and exported."""
        return nullcontext() if self.average is None else self.average.in_model()


def load_kernels(config: Config, device: torch.device) -> Kernels:
    """Loads the kernels that the configuration names; fails before anything is allocated or written."""
    try:
        return select_kernels(config.kernels, device)
    except KernelsUnavailableError as error:
        raise DeviceError(str(error)) from error


def load_session(session: Session, path: Path, show_work: ShowWork = unshown) -> RunState:
    """Fills the session from the checkpoint at `path`; returns where that run stood."""
    with show_work(f"reading {path}", read_manifest(path).num_bytes) as advance:
        state = RunState.from_dict(load_checkpoint(path, session.stored(), advance=advance))
    session.restored(state)
    return state


def load_weights(session: Session, path: Path) -> None:
    """Loads only what a prediction needs, from a checkpoint of any method and optimizer.

    Scales that this session would learn and the checkpoint does not have stay where training would start them; those
    of activations are found from training rows. All ranks call it.
    """
    if not load_model_weights(session.model, session.scales, path, session.shards):
        session.model.inputs.forget()
        session.evaluate.calibrate(session.loaders.train)


def load_model_weights(
    model: Dlrm,
    scales: Scales | None,
    path: Path,
    shards: Shards | None = None,
    without: Collection[str] = (),
    show_work: ShowWork = unshown,
) -> bool:
    """Loads the weights of a checkpoint; False where the scales that the model has for activations are not in it.

    `shards`: of a model that holds some rows; None: it has all of them. `scales`: what follows its tables. Tensors
    named in `without` stay as they are.
    """
    manifest, weights = read_manifest(path), model.weights()
    stored = manifest.tensors
    optional = {"scales", "activations"}
    into = {name: weights[name] for name in weights.keys() - set(without) if name in stored or name not in optional}
    with show_work(f"reading {path}", manifest.num_bytes) as advance:
        loaded = load_checkpoint(path, held_tensors(into, shards), allow_unused=True, advance=advance)
    state = RunState.from_dict(loaded)
    model.is_corrected, model.table_draws = False, state.table_draws
    if scales is not None:
        scales.tables_loaded(state.scale_refreshed_at)
    return "activations" in stored or "activations" not in weights


def whole_model(config: Config, kernels: Kernels, checkpoint: Path, folder: Path) -> Dlrm:
    """Returns the model of a checkpoint with all of its rows, which lie in a nameless file in `folder`."""
    device = torch.device(config.device)
    row_type = ROW_TYPES[config.train.master_rows]
    groups = allocate_groups(config.model.table_rows, config.model.dims, device, folder, row_type)
    model = Dlrm(config, kernels, device, tables=groups)
    model.seed = config.training_seed
    load_model_weights(model, None, checkpoint)
    return model


def open_scales(quant: QuantConfig, model: Dlrm, shards: Shards | None = None) -> Scales:
    """Makes the tables' scales: parameters of the model where the method learns them, else found from max|W|.

    `shards`: of a model that holds some rows; None: it has all of them.
    """
    learned = learned_formula(quant, quant.embedding_bits)
    if learned is not None:
        return LearnedTableScales(learned, model.groups, model.scales)
    return TableScales(quant, model.kernels, model.groups, None if shards is None else shards.largest)


def quantized_from(config: Config, batches_per_epoch: int) -> float:
    """Returns the first iteration that trains the quantized model.

    What stops a run early, `train.max_steps` among it, does not move it: such a run can be gone on with.
    """
    quant = config.quant
    if quant.method == "ptq":
        return math.inf
    late = int(quant.start_at * config.train.epochs * batches_per_epoch)
    return late or quant.pretrain_epochs * batches_per_epoch


def build_session(
    config: Config, kernels: Kernels, data: DataSet, transport: Transport, device: torch.device, share: float = 1.0
) -> Session:
    """Allocates and initializes the model; the same on every rank.

    `share`: of the run that its schedules are for; shorter ones train in FP32 for as much shorter.
    """
    shares = rank_shares(transport.rank, transport.size, config.comm.simulated_ranks)
    tables = select_shards(config, transport)
    model = Dlrm(config, kernels, device, held=None if tables is None else tables.held)
    settings = exchange_settings(config)
    rows = None
    if tables is not None:
        channel = open_channel(transport, settings.overlap, model.spans)
        rows = RowExchange(transport, tables.placement, model.tables, model.spans, channel)
    model.initialize_(config.training_seed)
    if config.init_from:
        model.seed = None  # what the parent's rows began with cannot be drawn again
    scales = open_scales(config.quant, model, tables)
    optimizer = select_optimizer(config.train, model)
    train = config.train

    def loader(part: Part, batch_size: int, name: str) -> Loader:
        return Loader(part, batch_size, shares, device, DATA_CACHE_BYTES, part_name=name)

    def largest_share(batch_size: int) -> int:
        return -(-batch_size // shares.total)

    train_loader = loader(data.train, train.batch_size, "training")
    skips_bad = train.on_bad_batch == "skip"
    first_quantized = share * quantized_from(config, train_loader.num_batches)
    tables_last = train_loader.num_batches if train.reset_tables == "each-epoch" else 0
    return Session(
        model,
        scales,
        optimizer,
        TrainingStep(
            model,
            scales,
            optimizer,
            transport,
            len(shares.mine),
            largest_share(train.batch_size),
            settings,
            first_quantized,
            skips_bad,
            train_loader.is_weighted,
            rows,
            tables_last,
        ),
        Evaluator(model, scales, transport, largest_share(train.test_batch_size), skips_bad, rows, tables),
        Loaders(
            train_loader,
            loader(data.validation, train.test_batch_size, "validation"),
            loader(data.test, train.test_batch_size, "test"),
        ),
        tables,
        None
        if not train.average_snapshots
        else WeightAverage(model, scales, snapshot_steps(config, train_loader.num_batches)),
    )


def loaders_to_score(config: Config, parts: Sequence[str], transport: Transport, device: torch.device) -> list[Loader]:
    """Opens parts of the data to be scored: training rows as they are stored, none left out."""
    plain = open_data(replace(config, data=replace(config.data, reshuffle=False, sub_sample_rate=0.0)))
    shares = rank_shares(transport.rank, transport.size, config.comm.simulated_ranks)
    names = {part: "training" if part == "train" else part for part in parts}
    return [
        Loader(plain.part(part), config.train.test_batch_size, shares, device, part_name=name)
        for part, name in names.items()
    ]


def trained_session(config: Config, checkpoint: Path, transport: Transport, warn: Callable[[str], object]) -> Session:
    """Builds a session to predict with, with the weights of a checkpoint; every rank calls it.

    DataError where an id of the data set stands for another category than in training; `warn` is told on rank 0 where
    that cannot be checked.
    """
    data, device = open_data(config), torch.device(config.device)
    warning = _require_same_vocabulary(checkpoint, data, config.data.source)
    if warning and transport.rank == 0:
        _LOGGER.warning(warning)
        warn(warning)
    session = build_session(config, load_kernels(config, device), data, transport, device)
    load_weights(session, checkpoint)
    return session


def exchange_settings(config: Config) -> ExchangeSettings:
    """Returns what the gradients of a run look like between ranks."""
    settings = ExchangeSettings.of(config.comm, config.training_seed)
    # Of the vectors that a batch looks up, one id per table.
    vector_bytes = 4 * config.train.batch_size * sum(config.model.dims)
    if settings.overlap == "auto" and vector_bytes < _LEAST_TO_HIDE_BYTES:
        return replace(settings, overlap="off")
    return settings


def _require_same_vocabulary(checkpoint: Path, data: DataSet, source: str) -> str | None:
    """Refuses data in which an id stands for another category; returns a warning where that cannot be checked.

    `source` is the setting data.source that `data` were opened from.
    """
    state = read_state(checkpoint)
    identity = DataIdentity.from_text(str(state.get("identity", "")))
    trained = TrainedIds(checkpoint, identity, str(state.get("data", "")))
    return require_same_ids(trained, source, data.identity, data.fingerprint)
