"""Trains one job in its folder, or goes on with it, and gathers its outcome."""

import math
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, TextIO

import msgspec

from dqrm_cpu.base.decode import UnreadableError, decoded, read_json
from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.config import Config
from dqrm_cpu.errors import ConfigError
from dqrm_cpu.experiments.histograms import write_histograms
from dqrm_cpu.experiments.job import Job
from dqrm_cpu.experiments.launched import train_on_ranks
from dqrm_cpu.experiments.outcome import Epoch, Outcome
from dqrm_cpu.model.size import model_bytes
from dqrm_cpu.profile.phases import STEP_PHASES
from dqrm_cpu.profile.span_file import read_spans
from dqrm_cpu.train.checkpoint_manifest import JSON
from dqrm_cpu.train.metrics import ClickMetrics
from dqrm_cpu.train.metrics_row import MetricsRow
from dqrm_cpu.train.result import Interrupted
from dqrm_cpu.train.run import RunRequest, train
from dqrm_cpu.train.run_folder import checkpoints_folder, holds_run, read_rows

_RESULT = "result.json"


def train_job(
    job: Job, folder: Path, environment: Mapping[str, JSON], stream: TextIO, transport: Transport
) -> Outcome | Interrupted:
    """Resumes what an interruption left; the outcome is written last."""
    start_s = time.perf_counter()
    if not (folder / _RESULT).exists():  # killed between its result and its outcome
        interrupted = _train(job, folder, environment, stream, transport)
        if interrupted is not None:
            return interrupted
    found = _outcome(job.config, folder, time.perf_counter() - start_s)
    if job.histograms:
        write_histograms(job.config, folder, [epoch.step for epoch in found.epochs], transport)
    found.write(folder)
    return found


def _train(
    job: Job, folder: Path, environment: Mapping[str, JSON], stream: TextIO, transport: Transport
) -> Interrupted | None:
    if job.processes > 1:
        return train_on_ranks(job.config, job.processes, folder)
    request = RunRequest(folder, holds_run(folder), environment, stream)
    outcome = train(job.config, request, transport)
    return outcome if isinstance(outcome, Interrupted) else None


def drop_checkpoints(folder: Path) -> None:
    """A hundred runs would keep gigabytes that nobody reads."""
    shutil.rmtree(checkpoints_folder(folder), ignore_errors=True)


def holds_checkpoints(folder: Path) -> bool:
    """Whether the run's weights are still there."""
    return checkpoints_folder(folder).is_dir()


def _outcome(config: Config, folder: Path, wall_s: float) -> Outcome:
    result = _result(folder / _RESULT)
    epochs = tuple(_epochs(read_rows(folder)))
    fp32_bytes = model_bytes(config).fp32
    packed = result.packed_files
    return Outcome(
        validation_best=_metrics(result.validation.best),
        validation_last=_metrics(result.validation.last),
        test_best=_metrics(result.test.best),
        test_last=_metrics(result.test.last),
        best_step=result.best_step,
        steps=result.steps,
        ms_per_step=_number(result.ms_per_step),
        model_bytes=packed.dense if packed else fp32_bytes,
        fp32_bytes=fp32_bytes,
        sparse_bytes=_number(packed.sparse if packed else None),
        bytes_sent=result.bytes_per_step,
        phases_ms=_phases(folder),
        epochs=epochs,
        wall_s=wall_s,
        updated_fp32_bytes=_number(packed.updated_fp32 if packed else None),
        updated_sparse_bytes=_number(packed.updated_sparse if packed else None),
    )


class _Metrics(msgspec.Struct):
    auc: float | None
    accuracy: float | None
    log_loss: float | None
    normalized_entropy: float | None
    calibration: float | None
    examples: int


class _Part(msgspec.Struct):
    best: _Metrics
    last: _Metrics


class _Packed(msgspec.Struct):
    dense: int
    sparse: int | None = None
    updated_fp32: int | None = None
    updated_sparse: int | None = None


class _Result(msgspec.Struct):
    """What an outcome is made of, in result.json."""

    validation: _Part
    test: _Part
    best_step: int
    steps: int
    ms_per_step: float | None
    bytes_per_step: float
    packed_files: _Packed | None


def _result(path: Path) -> _Result:
    try:
        return decoded(read_json(path), _Result)
    except UnreadableError as error:
        raise ConfigError(f"{path} is no result: it {error}; remove it, and the run is finished again") from error


def _phases(folder: Path) -> dict[str, float]:
    """Of rank 0, over the steps of the session that finished."""
    spans = read_spans(folder)
    if not spans:
        raise ConfigError(f"{folder} has no spans; remove it to train it again")
    first = spans[0]
    steps = max(first.summary.step.count - 1, 1)
    found = first.summary.phases
    # Without the slowest sample of each: the first step compiles, which no later one does.
    return {phase.key: (found[phase].total_ms - found[phase].max_ms) / steps for phase in STEP_PHASES if phase in found}


def _metrics(found: _Metrics) -> ClickMetrics:
    values: dict[str, Any] = msgspec.structs.asdict(found)
    return ClickMetrics(**(values | {name: math.nan for name, value in values.items() if value is None}))


def _number(value: Any) -> float:
    """The number that result.json has, NaN for null; a float as it comes back from outcome.json."""
    return math.nan if value is None else float(value)


def _epochs(rows: Sequence[MetricsRow]) -> list[Epoch]:
    """One for each validation; the loss is that of the rows logged since the one before."""
    found, losses = [], []
    for row in rows:
        if row.phase == "train":
            losses.append(row.loss)
        elif row.phase == "validation" and row.metrics is not None:
            alive = row.liveness
            live = (alive.live_rows, alive.updated_rows, alive.live_updated_rows) if alive else (math.nan,) * 3
            loss = fmean(losses) if losses else math.nan
            metrics = row.metrics
            found.append(Epoch(row.epoch, row.step, metrics.accuracy, metrics.auc, metrics.log_loss, loss, *live))
            losses.clear()
    return found
