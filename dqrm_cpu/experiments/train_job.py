"""Trains one job in its folder, or goes on with it, and gathers its outcome."""

import math
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TextIO

from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.config import Config
from dqrm_cpu.experiments.job import Job
from dqrm_cpu.experiments.outcome import Epoch, Outcome
from dqrm_cpu.model.size import packed_row_bytes
from dqrm_cpu.train.checkpoint_files import JSON
from dqrm_cpu.train.result import Interrupted, Result
from dqrm_cpu.train.run import RunRequest, train
from dqrm_cpu.train.run_folder import MetricsRow, checkpoints_folder, holds_run, read_rows


def train_job(
    job: Job, folder: Path, environment: Mapping[str, JSON], stream: TextIO, transport: Transport
) -> Outcome | Interrupted:
    """Resumes what an interruption left; the outcome is written last."""
    start_s = time.perf_counter()
    resume = holds_run(folder)
    outcome = train(job.config, RunRequest(folder, resume, environment, stream), transport)
    if isinstance(outcome, Interrupted):
        return outcome
    found = _outcome(job.config, outcome, read_rows(folder), time.perf_counter() - start_s)
    found.write(folder)
    return found


def drop_checkpoints(folder: Path) -> None:
    """A hundred runs would keep gigabytes that nobody reads."""
    shutil.rmtree(checkpoints_folder(folder), ignore_errors=True)


def holds_checkpoints(folder: Path) -> bool:
    """Whether the run's weights are still there."""
    return checkpoints_folder(folder).is_dir()


def _outcome(config: Config, result: Result, rows: Sequence[MetricsRow], wall_s: float) -> Outcome:
    epochs = tuple(_epochs(rows))
    at_best = next((epoch for epoch in epochs if epoch.step == result.best_step), epochs[-1])
    return Outcome(
        validation_best=result.validation.best,
        validation_last=result.validation.last,
        test_best=result.test.best,
        test_last=result.test.last,
        best_step=result.best_step,
        steps=result.steps,
        ms_per_step=result.ms_per_step,
        model_bytes=result.model_bytes.packed,
        fp32_bytes=result.model_bytes.fp32,
        sparse_bytes=_sparse_bytes(config, result, at_best.live_rows),
        bytes_sent=result.bytes_per_step,
        epochs=epochs,
        wall_s=wall_s,
    )


def _epochs(rows: Sequence[MetricsRow]) -> list[Epoch]:
    """One for each validation; the loss is that of the rows logged since the one before."""
    found, losses = [], []
    for row in rows:
        if row.phase == "train":
            losses.append(row.loss)
        elif row.phase == "validation" and row.metrics is not None:
            live = row.liveness.live_rows if row.liveness else math.nan
            loss = fmean(losses) if losses else math.nan
            metrics = row.metrics
            found.append(Epoch(row.epoch, row.step, metrics.accuracy, metrics.auc, metrics.log_loss, loss, live))
            losses.clear()
    return found


def _sparse_bytes(config: Config, result: Result, live_rows: float) -> float:
    """The model with its live rows alone: their codes, and a bit for every row."""
    rows = sum(config.model.table_rows)
    row_bytes = packed_row_bytes(config.model.embedding_dim, config.quant.embedding_bits)
    dense_tables = rows * row_bytes
    return result.model_bytes.packed - dense_tables + live_rows * dense_tables + rows / 8
