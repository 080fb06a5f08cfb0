"""Requests of many clients, scored together by one thread: whatever waits goes into the next forward."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.errors import DqrmError
from dqrm_cpu.serving import Model

_MOST_ROWS = 2048
"""Rows of a forward: more of them only make others wait."""


class PreparedRows(NamedTuple):
    """Rows as the model reads them."""

    dense: NDArray[np.float32]
    ids: NDArray[np.int64]


class QueueFullError(DqrmError):
    """More rows wait than may; whoever asked should come again later."""


class ServerDefectError(DqrmError):
    """Scoring failed for a reason that is none of the request's."""


@dataclass
class _Job:
    num_rows: int
    prepare: Callable[[Model], PreparedRows]
    loop: asyncio.AbstractEventLoop
    answer: "asyncio.Future[NDArray[np.float32]]"
    prepared: PreparedRows | None = None


class ScoringQueue:
    """A thread that scores. Rows wait only while others are scored; `current` gives the model of the next forward."""

    def __init__(self, current: Callable[[], Model], most_waiting_rows: int, watch: Callable[[int], None]) -> None:
        """`watch` is told the rows of each forward."""
        self._current, self._most_waiting, self._watch = current, most_waiting_rows, watch
        self._jobs: deque[_Job] = deque()
        self._waiting_rows = 0
        self._wakes = threading.Condition()
        self._ends = False
        self._thread = threading.Thread(target=self._run, name="dqrm-score", daemon=True)
        self._thread.start()

    async def logits(self, num_rows: int, prepare: Callable[[Model], PreparedRows]) -> NDArray[np.float32]:
        """Returns the logits of rows that `prepare` makes for the model that will score them, in the thread."""
        loop = asyncio.get_running_loop()
        job = _Job(num_rows, prepare, loop, loop.create_future())
        with self._wakes:
            # One request alone may have more rows than may wait: its own limit has let it in.
            if self._waiting_rows and self._waiting_rows + num_rows > self._most_waiting:
                raise QueueFullError(f"{self._waiting_rows:,} rows wait already; try again later")
            self._jobs.append(job)
            self._waiting_rows += num_rows
            self._wakes.notify()
        return await job.answer

    def close(self) -> None:
        """Ends the thread once what waits has been scored."""
        with self._wakes:
            self._ends = True
            self._wakes.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._wakes:
                while not self._jobs and not self._ends:
                    self._wakes.wait()
                if not self._jobs:
                    return
                jobs = self._taken()
            self._score([job for job in jobs if not job.answer.cancelled()])

    def _taken(self) -> list[_Job]:
        """Takes jobs out of the queue, up to the rows of one forward."""
        jobs, rows = [self._jobs.popleft()], 0
        rows = jobs[0].num_rows
        while self._jobs and rows + self._jobs[0].num_rows <= _MOST_ROWS:
            jobs.append(self._jobs.popleft())
            rows += jobs[-1].num_rows
        self._waiting_rows -= rows
        return jobs

    def _score(self, jobs: list[_Job]) -> None:
        model = self._current()
        good: list[_Job] = []
        for job in jobs:
            try:
                job.prepared = job.prepare(model)
                model.require_rows(*job.prepared)
                good.append(job)
            except Exception as error:
                _fail(job, error)
        if not good:
            return
        try:
            parts = [job.prepared for job in good if job.prepared is not None]
            dense, ids = np.concatenate([part.dense for part in parts]), np.concatenate([part.ids for part in parts])
            logits = model.logits_of_ids(dense, ids)
        except Exception as error:
            for job in good:
                _fail(job, error)
            return
        self._watch(len(logits))
        ends = np.cumsum([len(part.dense) for part in parts])
        for job, answer in zip(good, np.split(logits, ends[:-1]), strict=True):
            _answer(job, answer)


def _answer(job: _Job, logits: NDArray[np.float32]) -> None:
    job.loop.call_soon_threadsafe(lambda: None if job.answer.done() else job.answer.set_result(logits))


def _fail(job: _Job, error: Exception) -> None:
    if not isinstance(error, DqrmError):
        error = ServerDefectError(f"{type(error).__name__}: {error}")
    job.loop.call_soon_threadsafe(lambda: None if job.answer.done() else job.answer.set_exception(error))
