"""A trained run as one file that scores raw rows by itself: weights, columns, vocabulary, calibration."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.base.decode import UnreadableError, decoded, read_json
from dqrm_cpu.base.files import remove_abandoned, working_folder_of
from dqrm_cpu.data.prepare.recorded_layout import recorded_layout
from dqrm_cpu.data.prepare.row_layout import Layout
from dqrm_cpu.data.prepare.vocabulary.saved_vocabulary import require_hashing, vocabulary_of
from dqrm_cpu.data.store.few_rows import first_rows
from dqrm_cpu.data.store.manifest import PART_NAMES, Manifest
from dqrm_cpu.errors import CheckpointError, ConfigError, TrainingError
from dqrm_cpu.export.features import RawFeatures, describe
from dqrm_cpu.export.write import has_sparse_layout, write_models
from dqrm_cpu.kernels.ensemble import mean_logits
from dqrm_cpu.metrics.calibration import Calibration, IsotonicCalibration, PlattCalibration
from dqrm_cpu.predict.run_network import run_network
from dqrm_cpu.predict.streamed_run import (
    CheckpointTable,
    StreamedRun,
    can_stream,
    open_streamed,
    reported,
    table_bytes,
)
from dqrm_cpu.predict.trained_model import TrainedModel, data_of_model, find_model, require_shape
from dqrm_cpu.quant.methods import select_formula
from dqrm_cpu.serving.description import ISOTONIC, PLATT, Calibrating, Description, IdRule
from dqrm_cpu.serving.ids import slot_ids
from dqrm_cpu.serving.mapped_file import MappedFile
from dqrm_cpu.serving.model import Model, read_description
from dqrm_cpu.train.working import ShowWork, unshown

if TYPE_CHECKING:
    from dqrm_cpu.predict.whole_run import WholeRun

PACKED, ONNX, OPENVINO, EXECUTORCH = "packed", "onnx", "openvino", "pte"

SUFFIXES = {PACKED: ".safetensors", ONNX: ".onnx", OPENVINO: ".xml", EXECUTORCH: ".pte"}
"""How the names of files end, by format."""

_MOST_CHECKED = 2048
_CHECKED_AT_ONCE = 32
"""Rows of the file's model: each id brings 16 pages of a large file into memory, which are then let go."""

_LARGEST_DIFFERENCE = 1e-4
"""Of a logit, between the file and the model that it was written from: they add up in another order."""


@dataclass(frozen=True)
class ExportRequest:
    """A run to export, and how."""

    run_dir: Path
    out: Path
    format: str = PACKED
    layout: str = "dense"
    checkpoint: str = "best"
    data: Path | None = None  # the data set with the run's vocabulary; None: the one that it was trained on
    calibrate: str | None = None  # platt or isotonic
    overwrite: bool = False
    note: Callable[[str], None] = lambda _: None
    show_work: ShowWork = unshown


@dataclass(frozen=True)
class ExportedFile:
    """The file that was written, and what it was compared by."""

    path: Path
    num_bytes: int
    vocabulary_bytes: int
    checked_rows: int
    largest_difference: float  # of a logit


class _Result(msgspec.Struct):
    """The part of result.json that a model file quotes."""

    test: dict[str, dict[str, Any]]


def export(request: ExportRequest) -> ExportedFile:
    """Writes the file, opens it as a server would, and compares its answers for some rows with the run's own."""
    require_place(request.out, request.format, request.overwrite)
    if request.format == PACKED:
        return _export_packed(request)
    if request.out.suffix != SUFFIXES[request.format]:
        raise ConfigError(f"{request.out}: the name of such a file ends in {SUFFIXES[request.format]}")
    require, write = _other_format(request.format)
    require()
    # On the same disk: the tables are as large as those of the file that is to be.
    with working_folder_of(request.out) as folder:
        packed = _export_packed(replace(request, out=folder / "model.safetensors"))
        file = MappedFile(packed.path)
        size = write(file, read_description(file), request.out, folder)
    return replace(packed, path=request.out, num_bytes=size, vocabulary_bytes=0)


def require_place(out: Path, file_format: str, overwrite: bool) -> None:
    """Raises ConfigError where no file of the format can get this name, and removes what others left half written."""
    if out.is_dir():
        raise ConfigError(f"{out} is a folder; give the name of a file")
    if out.exists() and not overwrite:
        raise ConfigError(f"{out} exists; give another name, or --overwrite")
    if not out.parent.is_dir():
        raise ConfigError(f"there is no folder {out.parent}; make it, or give another name")
    named = next((name for name, suffix in SUFFIXES.items() if suffix == out.suffix), file_format)
    if file_format == PACKED != named:
        raise ConfigError(f"{out} is the name of another format; give --format {named}, or another name")
    remove_abandoned(out)


def _other_format(name: str) -> tuple[Callable[[], object], Callable[[MappedFile, Description, Path, Path], int]]:
    """Returns what raises an error where a format's packages are missing, and what writes it."""
    # Imported here: they take seconds, and packed files do without.
    if name == ONNX:
        from dqrm_cpu.export.onnx_graph import require_onnx, write_onnx

        return require_onnx, lambda file, description, out, folder: write_onnx(file, description, out)
    if name == OPENVINO:
        from dqrm_cpu.export.openvino_ir import require_openvino, write_openvino

        return require_openvino, write_openvino
    from dqrm_cpu.export.executorch_program import require_executorch, write_executorch

    return require_executorch, lambda file, description, out, folder: write_executorch(file, description, out)


class FoundRun(NamedTuple):
    """A run to export, of which nothing but the description was read, and what its raw rows become."""

    trained: TrainedModel
    folder: Path  # of the data set
    manifest: Manifest
    features: RawFeatures

    @property
    def members(self) -> tuple[TrainedModel, ...]:
        """The models: one, or those of an ensemble."""
        return self.trained.members or (self.trained,)


def found_run(request: ExportRequest) -> FoundRun:
    """Finds a run and its data set; DqrmError where they do not go together."""
    trained = find_model(request.run_dir, request.checkpoint)
    if trained.is_packed:
        raise ConfigError(f"{request.run_dir} is a packed file; give the folder of the run")
    trained = as_exported(trained, request.note)
    folder, manifest, warning = data_of_model(trained, request.data)
    if warning:
        request.note(f"warning: {warning}")
    require_shape(trained, folder, manifest)
    features = _features(folder, manifest, recorded_layout(folder, manifest))
    return FoundRun(trained, folder, manifest, replace(features, metrics=_test_metrics(request.run_dir)))


def _export_packed(request: ExportRequest) -> ExportedFile:
    run = found_run(request)
    (trained, folder, manifest, features), members = run, run.members
    quant = trained.config.quant
    if request.layout == "sparse" and not has_sparse_layout(select_formula(quant, quant.embedding_bits)):
        raise ConfigError(f"{quant.method} has no code for zero: no row can be left out; use dense")
    sample = _sample(folder, manifest, describe(trained.config, request.layout, features))
    runs: Sequence[StreamedRun | WholeRun]
    if request.calibrate or not all(map(can_stream, members)):
        from dqrm_cpu.predict.whole_run import open_whole  # with torch, which other exports do without

        runs = whole = [open_whole(one, sample.rows, request.show_work) for one in members]
        if request.calibrate:
            features = replace(features, calibration=_calibration(request.calibrate, whole, folder, manifest, trained))
        tables: list[CheckpointTable] = []
    else:
        runs = streamed = [open_streamed(one, sample.rows, request.show_work) for one in members]
        tables = [table for one in streamed for table in one.tables]
    identity = str(trained.ids.identity or "")
    passes = 1 if request.layout == "dense" else 2  # which rows are zero is found before
    weights = [one.weights for one in runs]
    with (
        request.show_work(f"writing {request.out}", passes * sum(map(table_bytes, tables))) as advance,
        reported(tables, advance),
    ):
        size = write_models(request.out, trained.config, weights, request.layout, identity, features)
    with request.show_work(f"comparing {request.out} with the run", 0):
        count, difference = _compare(request.out, sample, runs)
    vocabulary_bytes = sum(keys.nbytes + 4 * keys.size for keys in features.keys)
    return ExportedFile(request.out, size, vocabulary_bytes, count, difference)


def as_exported(trained: TrainedModel, note: Callable[[str], None]) -> TrainedModel:
    """Returns the model that a file holds: that of an FP32 run quantized, any other as it is."""
    if trained.config.quant.method != "none":
        return trained
    note("an FP32 run: its weights are quantized now, as by `compress`, without training")
    return _quantized(trained)


def _quantized(trained: TrainedModel) -> TrainedModel:
    config = replace(trained.config, quant=replace(trained.config.quant, method="ptq"))
    return replace(trained, config=config, members=tuple(map(_quantized, trained.members)))


def _features(folder: Path, manifest: Manifest, layout: Layout) -> RawFeatures:
    """Returns what raw rows of a data set become."""
    recorded: Any = manifest.settings.get("vocabulary")
    if isinstance(recorded, dict) and recorded.get("kind") == "hash":
        rows, modulus = require_hashing(folder, manifest, recorded, layout)
        ids = IdRule(64 if layout.has_text else 32, modulus, rows)
        return RawFeatures(layout, manifest.transforms, ids)
    saved = vocabulary_of(folder, manifest)
    ids = IdRule(saved.keys[0].itemsize * 8, saved.max_ind_range)
    return RawFeatures(layout, manifest.transforms, ids, saved.keys[: layout.raw.num_tables])


def _described(calibration: Calibration) -> Calibrating:
    if isinstance(calibration, PlattCalibration):
        return Calibrating(PLATT, (calibration.slope,), (calibration.intercept,))
    assert isinstance(calibration, IsotonicCalibration)
    return Calibrating(ISOTONIC, tuple(calibration.knots.tolist()), tuple(calibration.values.tolist()))


def _calibration(
    how: str, runs: "Sequence[WholeRun]", folder: Path, manifest: Manifest, trained: TrainedModel
) -> Calibrating:
    """Returns what corrects the logits of a run, fitted to the validation rows."""
    from dqrm_cpu.predict.scorer import EnsembleScorer, fit_calibration  # with torch

    scorer = EnsembleScorer([one.scorer for one in runs])
    return _described(fit_calibration(scorer, how, folder, manifest, trained.config.data))


def _test_metrics(run_dir: Path) -> dict[str, float] | None:
    """Reads the metrics of the test rows that a run ended with; None where it has not ended."""
    try:
        test = decoded(read_json(run_dir / "result.json"), _Result).test.get("best", {})
    except (OSError, UnreadableError):
        return None
    return {name: float(value) for name, value in test.items() if isinstance(value, int | float) and isfinite(value)}


class _Sample(NamedTuple):
    """Rows of the data set by which the file is compared with the run, and the rows of the tables that they look up."""

    dense: NDArray[np.float32]  # [n, D]
    ids: NDArray[np.int64]  # [n, S], as an exported file reads them
    rows: list[NDArray[np.int64]]  # of each table, rising, at least one


def _sample(folder: Path, manifest: Manifest, description: Description) -> _Sample:
    """Returns some rows of a data set: of the test rows, where there are any."""
    part = next((part for part in reversed(PART_NAMES) if manifest.num_rows(part)), PART_NAMES[0])
    stored = first_rows(folder, manifest, part, _MOST_CHECKED)
    ids = slot_ids(stored.bags, len(stored.dense), description)
    by_table = [ids[:, np.array(description.slots) == t] for t in range(len(description.categories))]
    return _Sample(stored.dense, ids, [np.union1d(of_table[of_table >= 0], [0]) for of_table in by_table])


def _compare(path: Path, sample: _Sample, runs: "Sequence[StreamedRun | WholeRun]") -> tuple[int, float]:
    """Reads the file to its end, and scores the sound rows of a sample by it and by the runs that it was written from.

    Returns how many rows that were, and the largest difference of a logit: none and 0 of a file with a calibration,
    which changes them.
    """
    file = MappedFile(path)
    file.require_intact()
    description = read_description(file)
    if description.calibration is not None:
        return 0, 0.0
    model, largest = Model(file, description, fused=False, threads=None), 0.0
    networks = [run_network(description, one.weights, sample.rows, one.values) for one in runs]
    sound = model.sound_rows(sample.dense, sample.ids)
    dense, ids = sample.dense[sound], sample.ids[sound]
    for first in range(0, len(dense), _CHECKED_AT_ONCE):
        few = slice(first, first + _CHECKED_AT_ONCE)
        expected = mean_logits(network.logits(dense[few], ids[few]) for network in networks)
        if not np.isfinite(expected).all():
            raise TrainingError("the model gives scores that are not finite: its training has diverged; train it again")
        largest = max(largest, float(np.abs(model.logits_of_ids(dense[few], ids[few]) - expected).max()))
        file.release()
    if largest > _LARGEST_DIFFERENCE:
        raise CheckpointError(
            f"{path} gives logits that differ by {largest:.2g} from those of the run; please report this"
        )
    return len(dense), largest
