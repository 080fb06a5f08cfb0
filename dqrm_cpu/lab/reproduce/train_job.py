"""Trains one job in its folder, or goes on with it, and gathers its outcome."""

import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import TextIO

import msgspec

from dqrm_cpu.base.decode import Json, UnreadableError, decoded, read_json
from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.config import Config
from dqrm_cpu.errors import ConfigError
from dqrm_cpu.lab.reproduce.histograms import write_histograms
from dqrm_cpu.lab.reproduce.local_ranks import train_on_ranks
from dqrm_cpu.lab.reproduce.outcome import Epoch, RunOutcome, nan_for_null
from dqrm_cpu.lab.reproduce.pareto.scores import keep_scores
from dqrm_cpu.lab.reproduce.plan import Job
from dqrm_cpu.metrics.click import ClickMetrics
from dqrm_cpu.model.size import model_bytes
from dqrm_cpu.timing.phases import STEP_PHASES
from dqrm_cpu.timing.span_file import read_spans
from dqrm_cpu.train.metrics_row import MetricsRow
from dqrm_cpu.train.run import RunRequest, train
from dqrm_cpu.train.run_folder import read_rows
from dqrm_cpu.train.run_place import checkpoints_folder, holds_run
from dqrm_cpu.train.state import Interrupted

_RESULT = "result.json"


def train_job(
    job: Job, folder: Path, environment: Mapping[str, Json], stream: TextIO, transport: Transport
) -> RunOutcome | Interrupted:
    """Trains, or resumes what an interruption left; the outcome is written last."""
    start_s = time.perf_counter()
    if not (folder / _RESULT).exists():  # killed between its result and its outcome
        interrupted = _train(job, folder, environment, stream, transport)
        if interrupted is not None:
            return interrupted
    outcome = _outcome(job.config, folder, time.perf_counter() - start_s)
    if job.keeps_scores:
        outcome = _with_scores(outcome, keep_scores(job.config, folder, transport))
    if job.histograms:
        write_histograms(job.config, folder, [epoch.step for epoch in outcome.epochs], transport)
    outcome.write(folder)
    return outcome


def _with_scores(outcome: RunOutcome, fp32_bytes: int | None) -> RunOutcome:
    """Adds the bytes of the smallest file that holds the model: without dead rows or with them, or of an FP32 model."""
    files = [outcome.model_bytes, outcome.sparse_bytes] if fp32_bytes is None else [fp32_bytes]
    return replace(outcome, written_bytes=float(min(size for size in files if not math.isnan(size))))


def _train(
    job: Job, folder: Path, environment: Mapping[str, Json], stream: TextIO, transport: Transport
) -> Interrupted | None:
    if job.processes > 1:
        return train_on_ranks(job.config, job.processes, folder)
    result = train(job.config, RunRequest(folder, holds_run(folder), environment, stream), transport)
    return result if isinstance(result, Interrupted) else None


def drop_checkpoints(folder: Path) -> None:
    """Removes a run's checkpoints: a hundred runs would keep gigabytes that nobody reads."""
    shutil.rmtree(checkpoints_folder(folder), ignore_errors=True)


def holds_checkpoints(folder: Path) -> bool:
    """Says whether the run's weights are still there."""
    return checkpoints_folder(folder).is_dir()


class _Part(msgspec.Struct):
    best: ClickMetrics
    last: ClickMetrics


class _Packed(msgspec.Struct):
    dense: int
    sparse: float = math.nan
    updated_fp32: float = math.nan
    updated_sparse: float = math.nan


class _Result(msgspec.Struct):
    """The part of result.json that an outcome is made of; its nulls are NaN."""

    validation: _Part
    test: _Part
    best_step: int
    steps: int
    ms_per_step: float
    bytes_per_step: float
    packed_files: _Packed | float


def _outcome(config: Config, folder: Path, wall_s: float) -> RunOutcome:
    path = folder / _RESULT
    try:
        result = decoded(nan_for_null(read_json(path)), _Result)
    except UnreadableError as error:
        raise ConfigError(f"{path} is no result: it {error}; remove it, and the run is finished again") from error
    fp32_bytes = model_bytes(config).fp32
    packed = result.packed_files if isinstance(result.packed_files, _Packed) else _Packed(fp32_bytes)
    return RunOutcome(
        validation_best=result.validation.best,
        validation_last=result.validation.last,
        test_best=result.test.best,
        test_last=result.test.last,
        best_step=result.best_step,
        steps=result.steps,
        ms_per_step=result.ms_per_step,
        model_bytes=packed.dense,
        fp32_bytes=fp32_bytes,
        sparse_bytes=packed.sparse,
        bytes_sent=result.bytes_per_step,
        phases_ms=_phases(folder),
        epochs=tuple(_epochs(read_rows(folder))),
        wall_s=wall_s,
        updated_fp32_bytes=packed.updated_fp32,
        updated_sparse_bytes=packed.updated_sparse,
    )


def _phases(folder: Path) -> dict[str, float]:
    """Returns the phases of rank 0, over the steps of the session that finished."""
    spans = read_spans(folder)
    if not spans:
        raise ConfigError(f"{folder} has no spans; remove it to train it again")
    summary = spans[0].summary
    steps = max(summary.step.count - 1, 1)
    # Without the slowest sample of each: the first step compiles, which no later one does.
    return {
        phase.key: (summary.phases[phase].total_ms - summary.phases[phase].max_ms) / steps
        for phase in STEP_PHASES
        if phase in summary.phases
    }


def _epochs(rows: Sequence[MetricsRow]) -> list[Epoch]:
    """Returns one entry for each validation; the loss is that of the rows logged since the one before."""
    epochs, losses = [], []
    for row in rows:
        if row.phase == "train":
            losses.append(row.loss)
        elif row.phase == "validation" and row.metrics is not None:
            alive = row.liveness
            live = (alive.live_rows, alive.updated_rows, alive.live_updated_rows) if alive else (math.nan,) * 3
            loss = fmean(losses) if losses else math.nan
            metrics = row.metrics
            epochs.append(Epoch(row.epoch, row.step, metrics.accuracy, metrics.auc, metrics.log_loss, loss, *live))
            losses.clear()
    return epochs
