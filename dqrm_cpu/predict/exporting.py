"""A trained run as one file that scores raw rows by itself: weights, columns, vocabulary, calibration."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from torch import Tensor

from dqrm_cpu.base.decode import UnreadableError, decoded, read_json
from dqrm_cpu.base.files import remove_abandoned, working_folder_of
from dqrm_cpu.data.batch import Batch
from dqrm_cpu.data.prepare.recorded_layout import recorded_layout
from dqrm_cpu.data.prepare.row_layout import Layout
from dqrm_cpu.data.prepare.vocabulary.saved_vocabulary import require_hashing, vocabulary_of
from dqrm_cpu.data.store.manifest import PART_NAMES, Manifest
from dqrm_cpu.errors import CheckpointError, ConfigError
from dqrm_cpu.export.executorch_program import require_executorch, write_executorch
from dqrm_cpu.export.features import RawFeatures
from dqrm_cpu.export.onnx_graph import require_onnx, write_onnx
from dqrm_cpu.export.openvino_ir import require_openvino, write_openvino
from dqrm_cpu.export.write import PackedWeights, has_sparse_layout, write_models
from dqrm_cpu.metrics.calibration import Calibration, IsotonicCalibration, PlattCalibration
from dqrm_cpu.model.dlrm import Dlrm
from dqrm_cpu.predict.packed_scorer import slot_ids
from dqrm_cpu.predict.scorer import EnsembleScorer, RowScorer, Scorer, fit_calibration, load_weights, prepared_rows
from dqrm_cpu.predict.streamed_run import (
    CheckpointTable,
    can_stream,
    open_streamed,
    renumbered,
    reported,
    rows_of,
    table_bytes,
)
from dqrm_cpu.predict.trained_model import TrainedModel, data_of_model, find_model, require_shape
from dqrm_cpu.serving.description import ISOTONIC, PLATT, Calibrating, IdRule
from dqrm_cpu.serving.mapped_file import MappedFile
from dqrm_cpu.serving.model import Model, read_description
from dqrm_cpu.train.working import ShowWork, unshown

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
    if request.out.is_dir():
        raise ConfigError(f"{request.out} is a folder; give the name of a file")
    if request.out.exists() and not request.overwrite:
        raise ConfigError(f"{request.out} exists; give another name, or --overwrite")
    if not request.out.parent.is_dir():
        raise ConfigError(f"there is no folder {request.out.parent}; make it, or give another name")
    named = next((name for name, suffix in SUFFIXES.items() if suffix == request.out.suffix), request.format)
    if request.format == PACKED != named:
        raise ConfigError(f"{request.out} is the name of another format; give --format {named}, or another name")
    remove_abandoned(request.out)
    if request.format == PACKED:
        return _export_packed(request)
    if request.out.suffix != SUFFIXES[request.format]:
        raise ConfigError(f"{request.out}: the name of such a file ends in {SUFFIXES[request.format]}")
    {ONNX: require_onnx, OPENVINO: require_openvino, EXECUTORCH: require_executorch}[request.format]()
    # On the same disk: the tables are as large as those of the file that is to be.
    with working_folder_of(request.out) as folder:
        packed = _export_packed(replace(request, out=folder / "model.safetensors"))
        file = MappedFile(packed.path)
        description = read_description(file)
        if request.format == ONNX:
            size = write_onnx(file, description, request.out)
        elif request.format == OPENVINO:
            size = write_openvino(file, description, request.out, folder)
        else:
            size = write_executorch(file, description, request.out)
    return replace(packed, path=request.out, num_bytes=size, vocabulary_bytes=0)


def _export_packed(request: ExportRequest) -> ExportedFile:
    trained = find_model(request.run_dir, request.checkpoint)
    if trained.is_packed:
        raise ConfigError(f"{request.run_dir} is a packed file; give the folder of the run")
    trained = as_exported(trained, request.note)
    folder, manifest, warning = data_of_model(trained, request.data)
    if warning:
        request.note(f"warning: {warning}")
    require_shape(trained, folder, manifest)
    features = _features(folder, manifest, recorded_layout(folder, manifest))
    sample = _sample(folder, manifest)
    whole = request.calibrate is not None
    loaded = [_load(one, sample, whole, request.show_work) for one in trained.members or (trained,)]
    if request.layout == "sparse" and not has_sparse_layout(loaded[0].model):
        raise ConfigError(f"{trained.config.quant.method} has no code for zero: no row can be left out; use dense")
    scorer = EnsembleScorer([Scorer(one.model, one.scale, quantized=True) for one in loaded])
    if request.calibrate:
        fitted = fit_calibration(scorer, request.calibrate, folder, manifest, trained.config.data)
        features = replace(features, calibration=_described(fitted))
    features = replace(features, metrics=_test_metrics(request.run_dir))
    identity = str(trained.ids.identity or "")
    tables = [table for one in loaded for table in one.tables or ()]
    passes = 1 if request.layout == "dense" else 2  # which rows are zero is found before
    weights = [PackedWeights(one.model, one.scale, one.tables) for one in loaded]
    with (
        request.show_work(f"writing {request.out}", passes * sum(map(table_bytes, tables))) as advance,
        reported(tables, advance),
    ):
        size = write_models(request.out, trained.config, weights, request.layout, identity, features)
    compared = () if request.calibrate else tuple(zip(sample, loaded[0].batches, strict=True))
    with request.show_work(f"comparing {request.out} with the run", 0):
        count, difference = _compare(request.out, scorer, compared)
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


def _test_metrics(run_dir: Path) -> dict[str, float] | None:
    """Reads the metrics of the test rows that a run ended with; None where it has not ended."""
    try:
        test = decoded(read_json(run_dir / "result.json"), _Result).test.get("best", {})
    except (OSError, UnreadableError):
        return None
    return {name: float(value) for name, value in test.items() if isinstance(value, int | float) and isfinite(value)}


def _sample(folder: Path, manifest: Manifest) -> list[Batch]:
    """Returns some rows by which the file is compared with the run: of the test rows, where there are any."""
    part = next((part for part in reversed(PART_NAMES) if manifest.num_rows(part)), None)
    if part is None:
        return []
    loader = prepared_rows(folder, manifest, part, _MOST_CHECKED)
    return [batch.copied() for number in range(loader.num_batches) for batch in loader.batches(number)]


@dataclass(frozen=True)
class _Loaded:
    """A model to write: its tables are in memory, or (`tables`) read from the checkpoint while they are written."""

    model: Dlrm
    scale: Tensor
    batches: Sequence[Batch]  # the sample, as this model numbers the rows
    tables: Sequence[CheckpointTable] | None = None


def _load(trained: TrainedModel, sample: Sequence[Batch], whole: bool, show_work: ShowWork) -> _Loaded:
    """Loads what is to be written; all of it where rows of the whole data set are to be scored by it."""
    if whole or not can_stream(trained.config):
        return _Loaded(*load_weights(trained, show_work), sample)
    rows = rows_of(sample, len(trained.config.model.table_rows))
    run = open_streamed(trained, rows, show_work)
    return _Loaded(run.model, run.scale, [renumbered(batch, rows) for batch in sample], run.tables)


def _compare(path: Path, scorer: RowScorer, batches: Sequence[tuple[Batch, Batch]]) -> tuple[int, float]:
    """Reads the file to its end, and scores batches by it and, as the run numbers their rows, by the run.

    Returns how many rows that were, and the largest difference of a logit.
    """
    file = MappedFile(path)
    file.require_intact()
    model, count, largest = Model(file, read_description(file), None, None), 0, 0.0
    for batch, of_run in batches:
        ids, expected = slot_ids(batch, model.description), scorer.logits(of_run)
        for first in range(0, batch.size, _CHECKED_AT_ONCE):
            few = slice(first, first + _CHECKED_AT_ONCE)
            found = model.logits_of_ids(batch.dense.numpy()[few], ids[few])
            largest = max(largest, float(np.abs(found - expected[few]).max()))
            file.release()
        count += batch.size
    if largest > _LARGEST_DIFFERENCE:
        raise CheckpointError(
            f"{path} gives logits that differ by {largest:.2g} from those of the run; please report this"
        )
    return count, largest
