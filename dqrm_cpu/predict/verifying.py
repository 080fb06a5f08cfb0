"""Exported files against the run that they were written from: logits and AUC over a data set, file by file."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dqrm_cpu.base.precision import FP32
from dqrm_cpu.data.store.manifest import PART_NAMES
from dqrm_cpu.errors import CheckpointError, ConfigError, DataError
from dqrm_cpu.metrics.calibration import Calibration, IsotonicCalibration, PlattCalibration, sigmoid
from dqrm_cpu.metrics.click import ClickAccumulator, click_metrics
from dqrm_cpu.predict.exporting import as_exported
from dqrm_cpu.predict.packed_scorer import NewRows, renumbered, rows_in_file, slots_of
from dqrm_cpu.predict.runtimes import PACKED, OpenedFile, open_file
from dqrm_cpu.predict.scorer import EnsembleScorer, Scorer, load_weights, prepared_rows, sound_batches
from dqrm_cpu.predict.trained_model import data_of_model, find_model, require_shape
from dqrm_cpu.serving.description import PLATT, Calibrating, Description

_LOGITS_PER_PROBABILITY = 4
"""At a probability of one half."""


@dataclass(frozen=True)
class VerifyRequest:
    """Exported files, the run to compare them with, rows to score, and how far apart they may be."""

    files: tuple[Path, ...]
    run_dir: Path
    checkpoint: str = "best"
    data: Path | None = None  # None: the data set that the run was trained on
    part: str = "test"
    rows: int | None = None  # None: all of the part
    max_logit: float = 1e-5  # of files that are to be exact
    max_auc: float | None = None
    products: str = FP32  # int8: packed files are scored in that, too
    note: Callable[[str], None] = lambda _: None


@dataclass(frozen=True)
class FileVerdict:
    """A file beside the run: AUC is NaN where the rows are all clicks, or none is."""

    path: Path
    runtime: str
    num_bytes: int
    largest_difference: float  # of a logit
    auc: float
    auc_difference: float  # from that of the run's logits, calibrated as the file's are
    failures: tuple[str, ...] = ()  # of limits, each a clause


@dataclass(frozen=True)
class Verification:
    """The result of all files."""

    checkpoint: Path
    data: Path
    part: str
    rows: int
    left_out: int  # rows that are not sound
    auc: float  # of the run
    files: tuple[FileVerdict, ...]

    @property
    def passed(self) -> bool:
        """Tells whether every file is within its limits."""
        return not any(one.failures for one in self.files)


@dataclass
class _Compared:
    """One file while rows are scored."""

    path: Path
    opened: OpenedFile
    calibration: Calibration | None
    max_logit: float
    new_rows: NewRows | None  # of a file in bands
    largest: float = 0.0
    logits: list[NDArray[np.float32]] = field(default_factory=list)

    def add(self, expected: NDArray[np.float32], found: NDArray[np.float32]) -> None:
        if found.shape != expected.shape or not np.isfinite(found).all():
            raise CheckpointError(f"{self.path} gives logits that are not finite; export it again")
        self.largest = max(self.largest, float(self._differences(expected, found).max(initial=0)))
        self.logits.append(found)

    def _differences(self, expected: NDArray[np.float32], found: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns how far logits are from the run's.

        An isotonic calibration may be as good as vertical. Behind one, probabilities are compared with what it makes of
        the logits that the limit allows before it, and differ by so much of a logit as they would in the middle.
        """
        if not isinstance(self.calibration, IsotonicCalibration):
            wanted = expected if self.calibration is None else self.calibration.logits(expected)
            apart: NDArray[np.float32] = np.abs(found - wanted)
            return apart
        low, high = (self.calibration.probabilities(expected + limit) for limit in (-self.max_logit, self.max_logit))
        probability = sigmoid(found.astype(np.float64))
        beyond: NDArray[np.float32] = (
            _LOGITS_PER_PROBABILITY * np.maximum(low - probability, probability - high)
        ).astype(np.float32)
        return beyond


class Verifier:
    """Opens the run, its rows and all files; what cannot be compared is said before anything is scored."""

    def __init__(self, request: VerifyRequest) -> None:
        if request.rows is not None and request.rows < 1:
            raise ConfigError(f"--rows {request.rows}: at least one row is to be scored")
        if request.part not in PART_NAMES:
            raise ConfigError(f"there is no part {request.part!r}; there are {', '.join(PART_NAMES)}")
        if request.products != FP32 and not any(path.suffix == PACKED for path in request.files):
            raise ConfigError(f"--products {request.products} is of packed files, and none of these ends in {PACKED}")
        self._request = request
        trained = find_model(request.run_dir, request.checkpoint)
        if trained.is_packed:
            raise ConfigError(f"--against {request.run_dir} is a packed file; give the folder of a run")
        self._path = trained.path
        trained = as_exported(trained, request.note)
        self._folder, manifest, warning = data_of_model(trained, request.data)
        self._manifest = manifest
        if warning:
            request.note(f"warning: {warning}")
        require_shape(trained, self._folder, manifest)
        if not manifest.num_rows(request.part):
            there = [part for part in PART_NAMES if manifest.num_rows(part)]
            raise DataError(f"{self._folder} has no {request.part} rows; give --part {' or '.join(there)}")
        self._loader = prepared_rows(self._folder, manifest, request.part, request.rows)
        self.num_rows = min(request.rows or manifest.num_rows(request.part), manifest.num_rows(request.part))
        self._files = [
            _Compared(path, one, _calibration(one), request.max_logit, self._new_rows(path))
            for path in request.files
            for one in open_file(path, request.products)
        ]
        model = trained.config.model
        for compared in self._files:
            _require_same_shape(compared, model.num_dense, model.table_rows)
        members = trained.members or (trained,)
        self._scorer = EnsembleScorer([Scorer(*load_weights(one), quantized=True) for one in members])

    def _new_rows(self, path: Path) -> NewRows | None:
        return rows_in_file(path, self._folder, self._manifest) if path.suffix == PACKED else None

    def verify(self, advance: Callable[[int], None] = lambda _: None) -> Verification:
        """Scores the rows by the run and by every file, and compares; `advance` is told how many rows are done."""
        scored, left_out = ClickAccumulator(weighted=self._loader.is_weighted), 0
        for batch, expected, bad in sound_batches(self._scorer, self._loader, skips_bad=True):
            scored.add(torch.from_numpy(expected), batch.label, weights=batch.weight)
            for file in self._files:
                if batch.size:
                    ids = slots_of(batch, file.opened.description)
                    if file.new_rows is not None:
                        ids = renumbered(ids, file.new_rows)
                    file.add(expected, file.opened.logits(batch.dense.numpy(), ids))
            left_out += bad.size
            advance(batch.size + bad.size)
        if not scored.examples:
            raise DataError(f"{self._folder}: no {self._request.part} row is sound; prepare the data set again")
        verdicts = tuple(self._verdict(file, scored) for file in self._files)
        auc = scored.compute().auc
        part = self._request.part
        return Verification(self._path, self._folder, part, scored.examples, left_out, auc, verdicts)

    def _verdict(self, file: _Compared, scored: ClickAccumulator) -> FileVerdict:
        wanted = scored.logits if file.calibration is None else file.calibration.logits(scored.logits)
        auc = _auc(np.concatenate(file.logits), scored)
        difference = auc - _auc(wanted, scored)
        request, failures = self._request, []
        if file.opened.is_exact and file.largest > request.max_logit:
            failures.append(f"a logit differs by {file.largest:.2g}, more than --max-logit {request.max_logit:g}")
        if request.max_auc is not None and abs(difference) > request.max_auc:
            failures.append(f"AUC differs by {difference:.2g}, more than --max-auc {request.max_auc:g}")
        opened = file.opened
        return FileVerdict(file.path, opened.runtime, opened.num_bytes, file.largest, auc, difference, tuple(failures))


def _auc(logits: NDArray[np.float32], scored: ClickAccumulator) -> float:
    return click_metrics(logits, scored.clicks, scored.weights).auc


def _calibration(opened: OpenedFile) -> Calibration | None:
    """Returns what a file corrects logits by, to be done to those of the run too."""
    found: Calibrating | None = opened.description.calibration
    if found is None:
        return None
    if found.kind == PLATT:
        return PlattCalibration(found.first[0], found.second[0])
    return IsotonicCalibration(np.array(found.first), np.array(found.second))


def _require_same_shape(file: _Compared, num_dense: int, table_rows: Sequence[int]) -> None:
    described: Description = file.opened.description
    # A file in bands keeps the rows that it has bytes for.
    its_rows = (column.rows for column in described.categories)
    theirs = len(described.dense), tuple(table_rows if file.new_rows is not None else its_rows)
    if theirs != (num_dense, tuple(table_rows)):
        raise ConfigError(
            f"{file.path} reads {theirs[0]} numbers and tables of {sum(theirs[1]):,} rows, the run {num_dense} and "
            f"{sum(table_rows):,}: it was written from another run"
        )
