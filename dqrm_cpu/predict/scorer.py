"""A model that was loaded to score rows: logits of batches of any size, in memory that does not grow."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dqrm_cpu.base.precision import FP32
from dqrm_cpu.config import Config, DataConfig
from dqrm_cpu.data.batch import BadBatchError, Batch, RankShares
from dqrm_cpu.data.loader import Loader
from dqrm_cpu.data.prepare.raw_rows import NumberedRows
from dqrm_cpu.data.source import Part
from dqrm_cpu.data.store.manifest import Manifest
from dqrm_cpu.data.store.stored_rows import StoredRows, Stream
from dqrm_cpu.errors import ConfigError, DataError, TrainingError
from dqrm_cpu.export.read import load_packed
from dqrm_cpu.kernels.ensemble import mean_logits
from dqrm_cpu.kernels.packed_arrays import RefusedRowsError
from dqrm_cpu.kernels.packed_scoring import CompiledNetwork
from dqrm_cpu.metrics.calibration import FITS, Calibration
from dqrm_cpu.metrics.click import ClickAccumulator
from dqrm_cpu.model.activations import Mode
from dqrm_cpu.model.dlrm import Dlrm
from dqrm_cpu.predict.compiled_run import compile_run
from dqrm_cpu.predict.packed_scorer import open_scorer
from dqrm_cpu.predict.trained_model import TrainedModel, lacks_activations
from dqrm_cpu.quant.liveness import live_rows
from dqrm_cpu.train.bad_batches import described
from dqrm_cpu.train.session import load_kernels, load_model_weights, open_scales
from dqrm_cpu.train.working import ShowWork, unshown

_CPU = torch.device("cpu")
_BATCH = 2048
"""Rows of a forward: features and products of as many stay in the caches."""


class Scorer:
    """Scores rows as `evaluate` does: quantized, with the scales of the weights as they stand.

    Logits are corrected for the rows without a click that training did not see.
    """

    def __init__(self, model: Dlrm, scale: Tensor, quantized: bool) -> None:
        """`scale`: that of the tables, f32[T]; not `quantized`: the weights are those of a packed file already."""
        model.require_finite_mlps()
        model.quantize_weights(quantized)
        model.inputs.mode = Mode.BY_RUNNING
        self._model, self._scale, self._quantized = model, scale, quantized
        self._correction = np.float32(model.logit_correction())
        self._workspace = model.workspace(_BATCH)

    def logits(self, batch: Batch) -> NDArray[np.float32]:
        """Returns f32[B]; BadBatchError for rows that are not sound."""
        logits = np.empty(batch.size, np.float32)
        for first in range(0, batch.size, _BATCH):
            few = batch if batch.size <= _BATCH else batch.rows(first, min(first + _BATCH, batch.size))
            bags = self._model.bags(few)
            scored = self._model.forward(few, bags, self._scale, self._workspace.first(few.size))
            logits[first : first + few.size] = scored.numpy()
        if self._correction:
            logits += self._correction
        if not np.isfinite(logits).all():
            raise TrainingError("the model gives scores that are not finite: its training has diverged; train it again")
        return logits

    def twin(self, config: Config) -> "Scorer":
        """Makes another scorer of the same weights, for another thread: only the tables are shared."""
        model = Dlrm(config, load_kernels(config, _CPU), _CPU, tables=self._model.groups)
        copies, shared = model.weights(), model.groups.names("tables")
        for name, weights in self._model.weights().items():
            if name not in shared:
                copies[name].copy_(weights)
        model.is_corrected = self._model.is_corrected
        return Scorer(model, self._scale, self._quantized)

    def sound_rows(self, batch: Batch) -> Tensor:
        """Returns bool[B]: which rows can be scored."""
        return self._model.sound_rows(batch)


class CompiledScorer:
    """Scores as `Scorer` does, by the code that scores exported files: several threads may use it at a time."""

    def __init__(self, scorer: Scorer, network: CompiledNetwork, correction: float) -> None:
        """`scorer` scores what the compiled code does not: cells with several values, and rows that it refuses."""
        self._scorer, self._network = scorer, network
        self._correction = np.float32(correction)

    def logits(self, batch: Batch) -> NDArray[np.float32]:
        """Returns f32[B]; BadBatchError for rows that are not sound."""
        if batch.offsets is None:
            try:
                logits = self._network.logits(batch.dense.numpy(), batch.ids.numpy().T)
            except RefusedRowsError:
                return self._scorer.logits(batch)  # it says what is wrong
            if self._correction:
                logits += self._correction
            if np.isfinite(logits).all():
                return logits
        return self._scorer.logits(batch)

    def twin(self, config: Config) -> "CompiledScorer":
        """Makes another scorer of the same weights, for another thread."""
        return CompiledScorer(self._scorer.twin(config), self._network, float(self._correction))

    def sound_rows(self, batch: Batch) -> Tensor:
        """Returns bool[B]: which rows can be scored."""
        return self._scorer.sound_rows(batch)


class EnsembleScorer:
    """Scores rows by several models: the mean of their logits."""

    def __init__(self, members: Sequence["RowScorer"]) -> None:
        self._members = members

    def logits(self, batch: Batch) -> NDArray[np.float32]:
        """Returns f32[B]; BadBatchError for rows that are not sound."""
        return mean_logits(member.logits(batch) for member in self._members)

    def twin(self, config: Config) -> "EnsembleScorer":
        """Makes another scorer of the same weights, for another thread."""
        return EnsembleScorer([member.twin(config) for member in self._members])

    def sound_rows(self, batch: Batch) -> Tensor:
        """Returns bool[B]: which rows can be scored."""
        return self._members[0].sound_rows(batch)


class RowScorer(Protocol):
    """Scores rows, by a trained run or by an exported file."""

    def logits(self, batch: Batch) -> NDArray[np.float32]:
        """Returns f32[B]; BadBatchError for rows that are not sound."""

    def twin(self, config: Config) -> "RowScorer":
        """Returns a scorer of the same weights for another thread."""

    def sound_rows(self, batch: Batch) -> Tensor:
        """Returns bool[B]: which rows can be scored."""


class RawRowScorer:
    """Scores raw rows that have their ids, as batches of another scorer, with products on one thread."""

    def __init__(self, scorer: RowScorer) -> None:
        self._scorer = scorer

    def logits_of_raw(self, rows: NumberedRows) -> NDArray[np.float32]:
        """Returns f32[n]; BadBatchError for rows that are not sound."""
        torch.set_num_threads(1)  # of this thread
        dense, ids = torch.from_numpy(rows.dense), torch.from_numpy(rows.ids)
        offsets = None if rows.offsets is None else torch.from_numpy(rows.offsets)
        return self._scorer.logits(Batch(dense, ids.contiguous(), offsets, torch.zeros(dense.shape[0])))

    def twin(self, config: Config) -> "RawRowScorer":
        """Makes another scorer of the same weights, for another thread."""
        return RawRowScorer(self._scorer.twin(config))


@contextlib.contextmanager
def scoring_raw_rows(scorer: RowScorer) -> Iterator[RawRowScorer]:
    """Scores raw rows by a scorer of batches; torch has as many threads afterwards as before."""
    threads = torch.get_num_threads()
    try:
        yield RawRowScorer(scorer)
    finally:
        torch.set_num_threads(threads)


def load_scorer(
    trained: TrainedModel,
    threads: int | None = None,
    products: str = FP32,
    show_work: ShowWork = unshown,
    ids: tuple[Path, Manifest] | None = None,
) -> RowScorer:
    """Loads the weights of a model.

    `threads`: the most that score a batch, None: all cores; `products`: the arithmetic of an exported file; `ids`: the
    data set that says what the ids of the rows stand for, which a file with rows of its own numbers needs.
    """
    if trained.members:
        return EnsembleScorer([load_scorer(member, threads, products, show_work) for member in trained.members])
    if trained.is_exported:
        return open_scorer(trained.path, threads, products, ids)
    if products != FP32:
        raise ConfigError(
            f"--products {products} takes a file that dqrm-cpu export wrote, and {trained.path} is none; give that file"
        )
    (model, scale), quantized = load_weights(trained, show_work), not trained.is_packed
    scorer = Scorer(model, scale, quantized)
    network = compile_run(trained.config, model, scale, quantized, threads or torch.get_num_threads())
    return scorer if network is None else CompiledScorer(scorer, network, model.logit_correction())


def load_weights(trained: TrainedModel, show_work: ShowWork = unshown) -> tuple[Dlrm, Tensor]:
    """Loads a model, and the scales f32[T] of its tables; the weights of a packed file are quantized already."""
    config = trained.config
    model = Dlrm(config, load_kernels(config, _CPU), _CPU)
    if trained.is_packed:
        load_packed(trained.path, model, config.quant)
        return model, torch.ones(model.groups.num_tables)
    scales = open_scales(config.quant, model)
    if not load_model_weights(model, scales, trained.path, show_work=show_work):
        raise lacks_activations(trained.path)
    return model, scales.for_evaluation()


def zero_rows(trained: TrainedModel) -> list[NDArray[np.bool_]]:
    """Tells which rows of each table, bool[rows], are zero in the quantized model: they say nothing.

    Of an ensemble, in all of its members.
    """
    if trained.members:
        by_member = [zero_rows(member) for member in trained.members]
        return [np.logical_and.reduce(of_table) for of_table in zip(*by_member, strict=True)]
    model, scale = load_weights(trained)
    formula = model.table_formula
    if formula is None:
        raise ConfigError(f"{trained.path} is a model in FP32, in which no row is zero; give one that is quantized")
    if trained.is_packed:
        return [(weight == 0).all(1).numpy() for weight in model.groups.weights]
    return [~alive.numpy() for alive in live_rows(formula, model.groups, scale)]


def prepared_rows(folder: Path, manifest: Manifest, part: str, most: int | None = None) -> Loader:
    """Returns the rows of a part of a data set in their order, or the first `most` of them, to be scored."""
    num_rows = manifest.num_rows(part) if most is None else min(most, manifest.num_rows(part))
    stream = Stream(StoredRows(folder, manifest, part), num_rows)
    return Loader(Part(stream, 0, num_rows), _BATCH, RankShares((0,), 1), _CPU, part_name=part)


def sound_batches(
    scorer: RowScorer, loader: Loader, skips_bad: bool
) -> Iterator[tuple[Batch, NDArray[np.float32], NDArray[np.int64]]]:
    """Yields the sound rows of each batch, their logits, and the numbers of the others, from 0.

    Unless `skips_bad`, there are no others: DataError.
    """
    for number in range(loader.num_batches):
        (batch,) = loader.batches(number)
        try:
            yield batch, scorer.logits(batch), np.empty(0, np.int64)
        except BadBatchError as error:
            if not skips_bad:
                raise DataError(
                    f"{described(error, loader, number)}; correct the data set, or leave such rows out with "
                    "--bad-rows skip"
                ) from error
            sound = scorer.sound_rows(batch)
            rest = batch.only(sound)
            yield rest, scorer.logits(rest), loader.row_numbers(number, 0)[~sound.numpy()]


def fit_calibration(scorer: RowScorer, how: str, folder: Path, manifest: Manifest, data: DataConfig) -> Calibration:
    """Fits a calibration to the validation rows of a data set, as many as the settings `data` have evaluated."""
    if data.evaluation_keep_rate < 1:
        raise ConfigError(
            f"--calibrate fits probabilities to the validation rows, which kept {data.evaluation_keep_rate:g} of those "
            "without a click (data.evaluation_keep_rate); leave it out: probabilities are corrected for all rows anyway"
        )
    if not manifest.num_rows("validation"):
        raise DataError(f"{folder} has no validation rows, which a calibration is fitted to; leave out --calibrate")
    loader = prepared_rows(folder, manifest, "validation", data.validation_rows)
    scored = ClickAccumulator(weighted=loader.is_weighted)
    for batch, logits, _ in sound_batches(scorer, loader, skips_bad=False):
        scored.add(torch.from_numpy(logits), batch.label, weights=batch.weight)
    return FITS[how](scored.logits, scored.clicks, scored.weights)
