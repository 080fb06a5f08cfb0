"""Does the jobs that are not done yet, one after another; whatever stops it, the next call goes on from there."""

import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dqrm_cpu.base.decode import UnreadableError, decoded, read_json
from dqrm_cpu.base.files import replace_file
from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.config import Config
from dqrm_cpu.errors import TrainingError
from dqrm_cpu.experiments.compress_job import compress_job
from dqrm_cpu.experiments.cost import job_units
from dqrm_cpu.experiments.job import Job
from dqrm_cpu.experiments.outcome import Outcome
from dqrm_cpu.experiments.train_job import drop_checkpoints, holds_checkpoints, train_job
from dqrm_cpu.train.checkpoint_manifest import JSON
from dqrm_cpu.train.result import Interrupted

_FAILED = "failed.json"

OpenTransport = Callable[[Config], AbstractContextManager[Transport]]


@dataclass(frozen=True)
class Failure:
    """A run that could not go on: its loss or its weights were no numbers any more."""

    reason: str


Found = Outcome | Failure


class Observer(Protocol):
    """Who watches."""

    def begins(self, job: Job, done: int, total: int, left_s: float) -> None:
        """Before a job that has work to do; `left_s` is a guess for all that is left, NaN where there is none yet."""

    def says(self, line: str) -> None:
        """What the job at hand reports of itself."""


@dataclass(frozen=True)
class Stopped:
    """Somebody asked to stop; everything is saved."""

    signal: str


@dataclass(frozen=True)
class Surroundings:
    """What running needs of the world outside."""

    out: Path
    environment: Mapping[str, JSON]
    open_transport: OpenTransport
    observer: Observer


def run_jobs(jobs: Sequence[Job], around: Surroundings) -> dict[str, Found] | Stopped:
    """Outcomes by the name of a job's folder."""
    found: dict[str, Found] = {}
    remaining = [job for job in jobs if not _take_known(job, jobs, around, found)]
    clock = _Clock(remaining)
    for number, job in enumerate(remaining):
        folder = job.folder(around.out)
        around.observer.begins(job, number, len(remaining), clock.left_s(number))
        start_s = time.perf_counter()
        outcome = _run(job, folder, around)
        if isinstance(outcome, Interrupted):
            return Stopped(outcome.signal)
        found[job.result_name] = outcome
        clock.finished(number, time.perf_counter() - start_s)
        _tidy(job, remaining[number + 1 :], around)
    return found


def _take_known(job: Job, jobs: Sequence[Job], around: Surroundings, found: dict[str, Found]) -> bool:
    """Whether the job is done: its outcome is there, and so are its weights where somebody reads them."""
    folder = job.folder(around.out)
    known = Outcome.read(folder) or _failure(folder)
    if known is None or (isinstance(known, Outcome) and _lacks_weights(job, jobs, around)):
        return False
    found[job.result_name] = known
    return True


def _lacks_weights(job: Job, jobs: Sequence[Job], around: Surroundings) -> bool:
    if job.compression is not None or holds_checkpoints(job.folder(around.out)):
        return False
    waiting = (other for other in jobs if other.compression is not None and other.key == job.key)
    return any(Outcome.read(other.folder(around.out)) is None for other in waiting)


def _run(job: Job, folder: Path, around: Surroundings) -> Found | Interrupted:
    with around.open_transport(job.config) as transport:
        if job.compression is not None:
            trained = job.training().folder(around.out)
            failed = _failure(trained)
            return failed or compress_job(job.config, job.compression, trained, folder, transport)
        relay = _Relay(around.observer)
        try:
            return train_job(job, folder, around.environment, relay, transport)
        except TrainingError as error:
            return _record_failure(folder, str(error))


def _record_failure(folder: Path, reason: str) -> Failure:
    replace_file(folder / _FAILED, [json.dumps({"reason": reason}).encode()], TrainingError)
    return Failure(reason)


def _failure(folder: Path) -> Failure | None:
    try:
        return decoded(read_json(folder / _FAILED), Failure)
    except (FileNotFoundError, UnreadableError):
        return None


def _tidy(job: Job, later: Sequence[Job], around: Surroundings) -> None:
    """Weights go once nobody will read them; a baseline's stay, since other tables may quantize them."""
    if job.config.quant.method != "none" and all(other.key != job.key for other in later):
        drop_checkpoints(job.training().folder(around.out))


class _Clock:
    """Guesses what is left from what the jobs so far took, each weighed by what it has to do."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._units = [job_units(job.config, job.compression) for job in jobs]
        self._done_units, self._seconds = 0.0, 0.0

    def finished(self, number: int, seconds: float) -> None:
        self._done_units += self._units[number]
        self._seconds += seconds

    def left_s(self, number: int) -> float:
        if not self._done_units:
            return float("nan")
        return sum(self._units[number:]) * self._seconds / self._done_units


class _Relay(io.StringIO):
    """A stream that hands lines to whoever watches; what a terminal shows is decided there."""

    def __init__(self, observer: Observer) -> None:
        super().__init__()
        self._observer = observer

    def write(self, text: str) -> int:
        for line in text.splitlines():
            self._observer.says(line)
        return len(text)

    def isatty(self) -> bool:
        return False
