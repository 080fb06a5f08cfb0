"""Predictions from beginning to end: a model and rows in, keys and probabilities out, block after block.

Torch is imported where it is needed: an exported file scores raw rows without it.
"""

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from types import MappingProxyType
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.base.files import remove_abandoned, replacing
from dqrm_cpu.base.kernel_cache import compiling_note
from dqrm_cpu.base.precision import FP32
from dqrm_cpu.config import Config
from dqrm_cpu.data.predictions.writers import PROBABILITY, ArrayWriter, predictions_to, require_writable
from dqrm_cpu.data.prepare.bad_rows import QUARANTINE_FILE
from dqrm_cpu.data.prepare.parse.key_cells import KeyCells
from dqrm_cpu.data.prepare.raw_rows import NumberedRows, RawRowReader, RawSources, SkippedRows, load_categories
from dqrm_cpu.data.prepare.request import Advance
from dqrm_cpu.data.prepare.sources.find import find_sources, require_different
from dqrm_cpu.data.prepare.sources.raw_file import examine
from dqrm_cpu.data.prepare.sources.remote import is_url
from dqrm_cpu.data.store.manifest import PART_NAMES, Manifest, holds_manifest, read_manifest
from dqrm_cpu.data.store.run_data import fingerprint_of
from dqrm_cpu.errors import ConfigError, DataError
from dqrm_cpu.metrics.calibration import Calibration, sigmoid
from dqrm_cpu.predict.packed_scorer import PackedScorer, open_scorer
from dqrm_cpu.predict.trained_model import TrainedModel, data_of_model, find_model, require_shape
from dqrm_cpu.train.same_ids import require_same_ids
from dqrm_cpu.train.working import ShowWork, unshown

if TYPE_CHECKING:
    from dqrm_cpu.predict.scorer import RowScorer

SCORING = "scoring"
"""The stage of which progress is reported."""

ALL_PARTS = "all"


@dataclass(frozen=True)
class PredictRequest:
    """Rows to score, and what with."""

    model: Path  # the folder of a run, or a packed file
    inputs: tuple[str, ...]  # raw files, - for standard input, or the folder of one prepared data set
    out: Path | BinaryIO | ArrayWriter  # .csv or .parquet; a stream gets CSV
    keys: tuple[str, ...] | None = None  # columns to carry along; None: those of the data set's schema
    data: Path | None = None  # the data set with the model's vocabulary; None: the one that it was trained on
    checkpoint: str = "best"
    part: str = ALL_PARTS  # of a prepared data set
    calibrate: str | None = None  # platt or isotonic
    products: str = FP32  # or int8, of an exported file
    bad_rows: str = "stop"  # or skip, quarantine
    max_bad_rows: int = 1000
    overwrite: bool = False
    workers: int = 1  # threads that parse and score raw rows; as many of torch score a prepared data set
    stdin: BinaryIO = field(default_factory=io.BytesIO)
    advance: Callable[[Advance], None] = lambda _: None
    note: Callable[[str], None] = lambda _: None
    show_work: ShowWork = unshown  # the reading of a large model


@dataclass(frozen=True)
class PredictionSummary:
    """The result of a prediction, beside its file."""

    model: Path  # the checkpoint or the packed file
    rows: int
    mean_probability: float
    skipped: SkippedRows
    quarantine: Path | None = None  # the file that keeps them
    cut: Mapping[str, int] = field(default_factory=dict)
    """Values beyond the limit of their cell, which were left out, by column; columns without any are not named."""


class ScoredRows(NamedTuple):
    """Neighbouring rows in the order of the input."""

    keys: tuple[KeyCells, ...]
    logits: NDArray[np.float32]
    done_bytes: int
    bad_text: bytes = b""  # lines to be kept


class RowsToScore(Protocol):
    """Rows of whatever kind, opened and checked against the model before its weights are read."""

    key_names: tuple[str, ...]
    total_bytes: int  # 0: not known
    threads: int | None  # that score a batch; None: one for each core
    data: tuple[Path, Manifest]  # the data set whose ids they have

    @property
    def skipped(self) -> SkippedRows:
        """The bad rows that were left out so far."""

    @property
    def cut(self) -> Mapping[str, int]:
        """The values beyond the limit of their cell so far, by column."""

    def scored(self, scorer: "RowScorer") -> Iterator[ScoredRows]:
        """Yields all rows once, in their order."""


def predict(request: PredictRequest) -> PredictionSummary:
    """Scores rows and writes their keys and probabilities; whatever is wrong is an error of the class DqrmError."""
    names = request.keys or ()
    if len(set(names)) != len(names) or PROBABILITY in names:
        raise ConfigError(f"keys {', '.join(names)}: name each once, and none {PROBABILITY!r}, as the result is called")
    if isinstance(request.out, Path):
        require_writable(request.out, request.overwrite)
    quarantine = _quarantine_of(request)
    for path in (request.out, quarantine):
        if isinstance(path, Path):
            remove_abandoned(path)
    model = find_model(request.model, request.checkpoint)
    for text in model.warnings:
        request.note(f"warning: {text}")
    rows = _open_rows(request, model)
    if (model.is_exported or model.config.kernels != "torch") and (
        text := compiling_note("numba", "rows", "packed_network")
    ):
        request.note(text)
    validation = data_of_model(model, request.data) if request.calibrate else None
    scorer = _load_scorer(request, model, rows)
    calibration = None
    if validation is not None and request.calibrate:
        from dqrm_cpu.predict.scorer import fit_calibration

        calibration = fit_calibration(scorer, request.calibrate, *validation[:2], model.config.data)
    count, total = _write(request, rows, scorer, calibration, quarantine)
    kept = quarantine if rows.skipped.count else None
    return PredictionSummary(model.path, count, total / count, rows.skipped, kept, rows.cut)


def _load_scorer(request: PredictRequest, model: TrainedModel, rows: RowsToScore) -> "RowScorer":
    if model.is_exported:
        return open_scorer(model.path, rows.threads, request.products, rows.data)
    import torch

    from dqrm_cpu.predict.scorer import load_scorer

    torch.set_num_threads(request.workers)
    return load_scorer(model, rows.threads, request.products, request.show_work, rows.data)


def _quarantine_of(request: PredictRequest) -> Path | None:
    """Returns the file beside the predictions for bad lines; None where they are not kept."""
    if request.bad_rows != "quarantine":
        return None
    if not isinstance(request.out, Path):
        raise ConfigError(
            "--bad-rows quarantine keeps bad rows in a file beside that of the predictions, and standard output is "
            "none; give --out FILE, or --bad-rows skip"
        )
    path = request.out.with_name(f"{request.out.name}.{QUARANTINE_FILE}")
    if path.is_dir() or (path.exists() and not request.overwrite):
        raise ConfigError(f"{path}, where bad rows are kept, exists; move it, or give --overwrite to replace it")
    return path


def _open_rows(request: PredictRequest, model: TrainedModel) -> RowsToScore:
    if any(holds_manifest(Path(name)) for name in request.inputs):
        if len(request.inputs) > 1:
            raise ConfigError("a prepared data set is scored alone; give it as the only input")
        if request.keys:
            raise ConfigError(f"{request.inputs[0]} is a prepared data set, which has no keys; leave out --keys")
        if request.data and not request.calibrate:
            raise ConfigError(f"{request.inputs[0]} has its ids already; leave out --data, or give --calibrate too")
        if request.bad_rows == "quarantine":
            raise ConfigError(
                f"{request.inputs[0]} is a prepared data set, without lines to keep; give --bad-rows skip"
            )
        return _PreparedRows(request, model, Path(request.inputs[0]))
    if request.part != ALL_PARTS:
        raise ConfigError(
            f"--part {request.part} chooses among the rows of a prepared data set; raw rows have no parts"
        )
    return _RawRowsToScore(request, model)


def _write(
    request: PredictRequest,
    rows: RowsToScore,
    scorer: "RowScorer",
    calibration: Calibration | None,
    quarantine: Path | None,
) -> tuple[int, float]:
    """Writes all predictions, and bad rows to be kept; returns how many they are, and the sum of the probabilities."""
    count, total = 0, 0.0
    # What is entered last is complete first: where there are predictions, the rows that they lack are kept.
    with predictions_to(request.out, rows.key_names) as writer, _kept_in(quarantine) as keep:
        for keys, logits, done, bad_text in rows.scored(scorer):
            keep(bad_text)
            if logits.size:
                corrected = logits if calibration is None else calibration.logits(logits)
                probabilities = sigmoid(corrected.astype(np.float64))
                writer.write(keys, probabilities.astype(np.float32))
                count, total = count + logits.size, total + float(probabilities.sum())
            request.advance(Advance(SCORING, count, done, max(rows.total_bytes, done) if rows.total_bytes else 0))
        if not count:
            bad = rows.skipped
            left_out = f"; {bad.count:,} bad rows were left out, the first one: {bad.first[0]}" if bad.count else ""
            raise DataError(f"{', '.join(request.inputs)}: there is not a single row to score{left_out}")
    return count, total


@contextlib.contextmanager
def _kept_in(path: Path | None) -> Iterator[Callable[[bytes], None]]:
    """Gives what keeps text in a file; without any there is no file at the end, nor one of earlier predictions."""
    with contextlib.ExitStack() as stack:
        files: list[BinaryIO] = []

        def keep(text: bytes) -> None:
            if path is not None and text:
                if not files:
                    files.append(stack.enter_context(replacing(path, DataError)))
                files[0].write(text)

        yield keep
        if path is not None and not files:
            path.unlink(missing_ok=True)


def _raw_files(request: PredictRequest) -> list[str]:
    """Finds the raw files, each of which is scored once and none of which the predictions replace."""
    found = find_sources(request.inputs)
    packed = next((name for name in found if name.endswith(".safetensors")), None)
    if packed is not None:
        raise ConfigError(
            f"{packed} is a packed model, no input; first name one model, then the rows that it is to score"
        )
    places = [name if is_url(name) else str(Path(name).resolve()) for name in found]
    for path in (request.out, _quarantine_of(request)):
        if isinstance(path, Path) and str(path.resolve()) in places:
            raise ConfigError(f"{path} is an input too; give the predictions a file of their own")
    require_different(found)
    return found


class _RawRowsToScore:
    """Raw files, read as the data set of the model was."""

    threads: int | None = 1  # each worker scores the rows that it has parsed

    def __init__(self, request: PredictRequest, model: TrainedModel) -> None:
        files = [examine(name) for name in _raw_files(request)]
        folder, manifest, warning = data_of_model(model, request.data)
        if warning:
            request.note(f"warning: {warning}")
        require_shape(model, folder, manifest)
        self.data = folder, manifest
        sources = RawSources(files, folder, manifest, request.keys, request.stdin)
        self.total_bytes = sources.total_bytes
        # Keys in the order in which they were asked for; the files have them in another one.
        there = sources.layout.keys
        self.key_names = there if request.keys is None else request.keys
        self._order = [there.index(name) for name in self.key_names]
        categories = load_categories(folder, manifest, sources.layout, request.workers)
        self._reader = RawRowReader(sources, categories, request.bad_rows, request.max_bad_rows, request.workers)
        self._note, self._workers, self._config = request.note, request.workers, model.config

    @property
    def skipped(self) -> SkippedRows:
        """The bad rows so far."""
        return self._reader.skipped

    @property
    def cut(self) -> Mapping[str, int]:
        """The values beyond the limit of their cell so far."""
        return self._reader.cut

    def scored(self, scorer: "RowScorer") -> Iterator[ScoredRows]:
        """Yields the rows of block after block, which each worker scores alone: with products on one thread."""
        with _scoring_raw_rows(scorer) as first:
            scorers: SimpleQueue[RawScorer] = SimpleQueue()
            for one in (first, *(first.twin(self._config) for _ in range(self._workers - 1))):
                scorers.put(one)

            def logits(rows: NumberedRows) -> NDArray[np.float32]:
                own = scorers.get()
                try:
                    return own.logits_of_raw(rows)
                finally:  # after an error too: other blocks wait for it
                    scorers.put(own)

            for made, keys, done_bytes, bad_text in self._reader.rows(logits, self._note):
                yield ScoredRows(tuple(keys[k] for k in self._order), made, done_bytes, bad_text)


class RawScorer(Protocol):
    """Scores raw rows that have their ids, in one thread."""

    def logits_of_raw(self, rows: NumberedRows) -> NDArray[np.float32]:
        """Returns f32[n]; BadBatchError for rows that are not sound."""

    def twin(self, config: Config) -> "RawScorer":
        """Returns a scorer of the same weights for another thread."""


@contextlib.contextmanager
def _scoring_raw_rows(scorer: "RowScorer") -> Iterator[RawScorer]:
    if isinstance(scorer, PackedScorer):
        yield scorer
        return
    from dqrm_cpu.predict.scorer import scoring_raw_rows

    with scoring_raw_rows(scorer) as torch_scorer:
        yield torch_scorer


class _PreparedRows:
    """The rows of a prepared data set, part after part in the order in which they are stored."""

    key_names: tuple[str, ...] = ()
    threads: int | None = None
    cut: Mapping[str, int] = MappingProxyType({})  # `prepare` has counted them

    def __init__(self, request: PredictRequest, model: TrainedModel, folder: Path) -> None:
        manifest: Manifest = read_manifest(folder)
        warning = require_same_ids(model.ids, str(folder), manifest.identity, fingerprint_of(manifest.digest()))
        if warning:
            request.note(f"warning: {warning}")
        require_shape(model, folder, manifest)
        parts = PART_NAMES if request.part == ALL_PARTS else (request.part,)
        self._parts = [part for part in parts if manifest.num_rows(part)]
        if not self._parts:
            raise DataError(f"{folder} has no {' or '.join(parts)} rows")
        self.data = self._folder, self._manifest = folder, manifest
        self._row_bytes = 4 * (manifest.schema.num_dense + manifest.schema.num_tables + 1)
        self.total_bytes = self._row_bytes * sum(map(manifest.num_rows, self._parts))
        self._policy, self._most = request.bad_rows, request.max_bad_rows
        self.skipped = SkippedRows()

    def scored(self, scorer: "RowScorer") -> Iterator[ScoredRows]:
        """Yields the rows of batch after batch."""
        from dqrm_cpu.predict.scorer import prepared_rows, sound_batches  # with torch

        done = 0
        for part in self._parts:
            loader = prepared_rows(self._folder, self._manifest, part)
            for batch, logits, bad in sound_batches(scorer, loader, self._policy == "skip"):
                done += batch.size + bad.size
                if bad.size:
                    self._skip(part, bad)
                yield ScoredRows((), logits, done * self._row_bytes)

    def _skip(self, part: str, rows: NDArray[np.int64]) -> None:
        described = [
            f"{self._folder}, {part} row {row:,}: it has NaN, an infinity or an id of no row" for row in rows.tolist()
        ]
        self.skipped.add(f"{self._folder}, {part} rows", rows.tolist(), described)
        if self.skipped.count > self._most:
            raise DataError(
                f"{self.skipped.count:,} bad rows, more than --max-bad-rows {self._most:,}; one of them: "
                f"{self.skipped.first[0]}; prepare the data set again, or raise --max-bad-rows"
            )
