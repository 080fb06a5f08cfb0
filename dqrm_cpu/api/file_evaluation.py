"""Metrics of a model file on a part of a prepared data set: the scores are those that `predict` and servers give."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from dqrm_cpu.api.evaluation import Evaluation, require_part_and_slices
from dqrm_cpu.api.settings import Warn
from dqrm_cpu.data.store.manifest import PART_NAMES, Manifest, read_manifest
from dqrm_cpu.data.store.run_data import fingerprint_of
from dqrm_cpu.errors import ConfigError, DataError
from dqrm_cpu.metrics.click import ClickAccumulator
from dqrm_cpu.metrics.groups import grouped_auc, slices
from dqrm_cpu.predict.scorer import load_scorer, prepared_rows, sound_batches
from dqrm_cpu.predict.trained_model import TrainedModel, data_of_model, find_model, require_shape
from dqrm_cpu.train.same_ids import require_same_ids


@dataclass(frozen=True)
class FileEvaluationOrder:
    """The arguments of an evaluation of a file that `export` or `compress` wrote."""

    path: Path
    data: Path | None = None  # a data set with the vocabulary of the model; None: the one that it was trained on
    part: str = "test"  # or train, validation, all
    group_by: str | None = None
    slice_by: str | None = None
    slices: int = 10


def require_options_of_files(settings: Iterable[str], checkpoint: str, calibrate: str | None) -> None:
    """Raises ConfigError for what is said of runs and not of files: settings, a checkpoint, a calibration."""
    given = ", ".join(settings)
    if given:
        raise ConfigError(f"{given}: a model file is scored as it was exported; only data may be given with it")
    if checkpoint != "best":
        raise ConfigError(f"checkpoint {checkpoint}: a model file is of one checkpoint; leave it out")
    if calibrate is not None:
        raise ConfigError(
            f"calibrate {calibrate}: a model file has the calibration that it was exported with; leave it out, or "
            "export the run with one"
        )


@dataclass(frozen=True)
class OpenedRows:
    """A model, of which nothing but the description was read, and the rows that it is to score."""

    model: TrainedModel
    folder: Path
    manifest: Manifest
    parts: tuple[str, ...]
    tables: tuple[int, ...]  # of the columns to group and to slice by

    @property
    def num_rows(self) -> int:
        """The rows of all parts together."""
        return sum(map(self.manifest.num_rows, self.parts))


def open_rows(order: FileEvaluationOrder, warn: Warn) -> OpenedRows:
    """Finds model and data; ConfigError or DataError where they do not go together."""
    require_part_and_slices(order.part, order.slices)
    model = find_model(order.path)
    for text in model.warnings:
        warn(text)
    if order.data is None:
        folder, manifest, warning = data_of_model(model, None)
    else:
        folder, manifest = order.data, read_manifest(order.data)
        warning = require_same_ids(model.ids, str(folder), manifest.identity, fingerprint_of(manifest.digest()))
    if warning:
        warn(warning)
    require_shape(model, folder, manifest)
    names = manifest.schema.categorical
    columns = [name for name in (order.group_by, order.slice_by) if name is not None]
    for name in columns:
        if name not in names:
            raise ConfigError(f"there is no category {name!r}; there are {', '.join(names)}")
    wanted = (order.part,) if order.part in PART_NAMES else PART_NAMES
    parts = tuple(part for part in wanted if manifest.num_rows(part))
    if not parts:
        raise DataError(f"{folder} has no {' or '.join(wanted)} rows")
    return OpenedRows(model, folder, manifest, parts, tuple(map(names.index, columns)))


def evaluate_file(
    order: FileEvaluationOrder, rows: OpenedRows, advance: Callable[[int], object] = lambda rows: None
) -> Evaluation:
    """Scores the rows; `advance` is called with the rows that have been."""
    scorer = load_scorer(rows.model, ids=(rows.folder, rows.manifest))
    loaders = [prepared_rows(rows.folder, rows.manifest, part) for part in rows.parts]
    scored = ClickAccumulator(num_keys=len(rows.tables), weighted=loaders[0].is_weighted)
    for loader in loaders:
        for batch, logits, _ in sound_batches(scorer, loader, skips_bad=False):
            keys = batch.single_ids(rows.tables) if rows.tables else None
            scored.add(torch.from_numpy(logits), batch.label, keys, batch.weight)
            advance(batch.size)
    by_group = by_slice = None
    if order.group_by is not None:
        by_group = grouped_auc(scored.logits, scored.clicks, scored.keys(0), scored.weights)
    if order.slice_by is not None:
        values = scored.keys(len(rows.tables) - 1)
        by_slice = slices(scored.logits, scored.clicks, values, order.slices, scored.weights)
    return Evaluation(rows.model.path, scored.compute(), by_group, by_slice, None)
