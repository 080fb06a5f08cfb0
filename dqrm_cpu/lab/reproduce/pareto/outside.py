"""Models from outside, on the same rows: a logistic regression, and LightGBM where it is installed."""

import math
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.config import Config
from dqrm_cpu.data.batch import Batch
from dqrm_cpu.data.source import Part, open_data
from dqrm_cpu.errors import DataError
from dqrm_cpu.export.safetensors_writer import whole, write_tensors
from dqrm_cpu.lab.reproduce.experiments.definition import Outside
from dqrm_cpu.lab.reproduce.logistic import best_of_rates
from dqrm_cpu.lab.reproduce.outcome import Epoch, RunOutcome
from dqrm_cpu.lab.reproduce.pareto.boosted_trees import boosted_trees
from dqrm_cpu.lab.reproduce.pareto.scores import PartScores, Scores


def outside_job(config: Config, outside: Outside, folder: Path) -> RunOutcome:
    """Fits the model on the training rows, chosen on validation, and keeps scores and outcome in `folder`."""
    start_s = time.perf_counter()
    data = open_data(config)
    train, validation, test = (_all_rows(part) for part in (data.train, data.validation, data.test))
    if train.offsets is not None:
        raise DataError(f"{outside.value} reads one id a column, and these rows have several")
    folder.mkdir(parents=True, exist_ok=True)
    if outside is Outside.LOGISTIC:
        features, weights = best_of_rates(config.model.table_rows, train, validation)
        logits = [weights.logits(features.places(part)) for part in (validation, test)]
        kept = weights.of_place.astype(np.float32)
        edges = [whole(f"edges{number}", edge) for number, edge in enumerate(features.edges)]
        path = folder / "model.safetensors"
        size = write_tensors(path, [whole("weights", kept), *edges], {"bias": repr(weights.bias)})
        path.unlink()
    else:
        fitted = boosted_trees(train, validation, test)
        logits, size = [fitted.validation, fitted.test], fitted.num_bytes
    scores = Scores(_part(logits[0], validation), _part(logits[1], test))
    scores.write(folder)
    outcome = _outcome(scores, size, time.perf_counter() - start_s)
    outcome.write(folder)
    return outcome


def _all_rows(part: Part) -> Batch:
    return part.rows(0, part.num_rows)


def _part(logits: NDArray[np.float64], rows: Batch) -> PartScores:
    return PartScores(logits.astype(np.float32), rows.label.numpy() == 1)


def _outcome(scores: Scores, num_bytes: int, wall_s: float) -> RunOutcome:
    validation, test = scores.validation.metrics(), scores.test.metrics()
    nothing = Epoch(1, 1, validation.accuracy, validation.auc, validation.log_loss, math.nan, math.nan)
    return RunOutcome(
        validation_best=validation,
        validation_last=validation,
        test_best=test,
        test_last=test,
        best_step=1,
        steps=1,
        ms_per_step=math.nan,
        model_bytes=num_bytes,
        fp32_bytes=num_bytes,
        sparse_bytes=math.nan,
        bytes_sent=0.0,
        phases_ms={},
        epochs=(nothing,),
        wall_s=wall_s,
        written_bytes=float(num_bytes),
    )
