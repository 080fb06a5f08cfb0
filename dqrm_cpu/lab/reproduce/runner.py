"""Does the jobs that are not done yet, one after another; whatever stops it, the next call goes on from there."""

import io
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dqrm_cpu.base.decode import Json
from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.config import Config
from dqrm_cpu.errors import TrainingError
from dqrm_cpu.lab.reproduce.compress_job import compress_job
from dqrm_cpu.lab.reproduce.outcome import RunFailure, RunOutcome, RunResult
from dqrm_cpu.lab.reproduce.pareto.outside import outside_job
from dqrm_cpu.lab.reproduce.pareto.scores import mean_job
from dqrm_cpu.lab.reproduce.plan import Job
from dqrm_cpu.lab.reproduce.train_job import drop_checkpoints, holds_checkpoints, train_job
from dqrm_cpu.train.state import Interrupted

OpenTransport = Callable[[Config], AbstractContextManager[Transport]]


class JobObserver(Protocol):
    """Hears what is run, and shows it to somebody."""

    def job_started(self, job: Job, done: int, total: int, left_s: float) -> None:
        """Hears of a job that has work to do; `left_s` is a guess for all that is left, NaN where there is none yet."""

    def job_printed(self, line: str) -> None:
        """Hears what the running job reports of itself."""


@dataclass(frozen=True)
class Stopped:
    """The result of a run that was asked to stop; everything is saved."""

    signal: str


@dataclass(frozen=True)
class JobContext:
    """The output folder, environment, transport and observer of running jobs."""

    out: Path
    environment: Mapping[str, Json]
    open_transport: OpenTransport
    observer: JobObserver


def run_jobs(jobs: Sequence[Job], context: JobContext) -> dict[str, RunResult] | Stopped:
    """Runs what is not done yet; returns the results by the name of a job's folder."""
    results: dict[str, RunResult] = {}
    remaining = []
    for job in jobs:
        folder = job.folder(context.out)
        known = RunOutcome.read(folder) or RunFailure.read(folder)
        if known is None or (isinstance(known, RunOutcome) and _lacks_weights(job, jobs, context)):
            remaining.append(job)
        else:
            results[job.result_name] = known
    clock = _Clock(remaining)
    for number, job in enumerate(remaining):
        context.observer.job_started(job, number, len(remaining), clock.left_s(number))
        start_s = time.perf_counter()
        result = _run(job, context)
        if isinstance(result, Interrupted):
            return Stopped(result.signal)
        results[job.result_name] = result
        clock.finished(number, time.perf_counter() - start_s)
        # Weights go once nobody will read them; a baseline's stay, since other tables may quantize them, but those
        # of runs that keep scores, of which there are hundreds.
        wanted = job.config.quant.method == "none" and not job.keeps_scores
        if not wanted and all(other.key != job.key for other in remaining[number + 1 :]):
            drop_checkpoints(job.training().folder(context.out))
    return results


def _lacks_weights(job: Job, jobs: Sequence[Job], context: JobContext) -> bool:
    """Tells whether the weights of a run that is done are gone, and will be read."""
    if job.compression is not None or holds_checkpoints(job.folder(context.out)):
        return False
    waiting = (other for other in jobs if other.compression is not None and other.key == job.key)
    return any(RunOutcome.read(other.folder(context.out)) is None for other in waiting)


def _run(job: Job, context: JobContext) -> RunResult | Interrupted:
    folder = job.folder(context.out)
    started_from = [need.folder(context.out) for need in job.needs()]
    failed = next(filter(None, map(RunFailure.read, started_from)), None)
    if failed is not None:
        return failed
    if job.members:
        return mean_job(started_from, folder)
    if job.outside is not None:
        return outside_job(job.config, job.outside, folder)
    with context.open_transport(job.config) as transport:
        if job.compression is not None:
            arguments = (job.config, job.compression, started_from[0], folder, transport)
            return compress_job(*arguments, keeps_scores=job.keeps_scores)
        try:
            return train_job(job, folder, context.environment, _Relay(context.observer), transport)
        except TrainingError as error:
            failure = RunFailure(str(error))
            failure.write(folder)
            return failure


class _Clock:
    """Guesses what is left from what the jobs so far took, each weighed by what it has to do."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._units = [job.estimated_s for job in jobs]
        self._done_units, self._seconds = 0.0, 0.0

    def finished(self, number: int, seconds: float) -> None:
        self._done_units += self._units[number]
        self._seconds += seconds

    def left_s(self, number: int) -> float:
        if not self._done_units:
            return float("nan")
        return sum(self._units[number:]) * self._seconds / self._done_units


class _Relay(io.StringIO):
    """A stream that hands its lines to the observer, who decides what a terminal shows."""

    def __init__(self, observer: JobObserver) -> None:
        super().__init__()
        self._observer = observer

    def write(self, text: str) -> int:
        for line in text.splitlines():
            self._observer.job_printed(line)
        return len(text)

    def isatty(self) -> bool:
        return False
