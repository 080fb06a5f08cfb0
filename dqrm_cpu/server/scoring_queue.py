"""Requests of many clients, scored together: what came in at the same time goes into one forward.

A few rows are scored where they came in, in the thread of the event loop: to wake another thread, which has to wait for
Python's lock, takes ten times as long as to score them. Many rows, during which nobody else would be heard, go to a
thread.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.errors import DqrmError
from dqrm_cpu.serving import Model

_MOST_ROWS = 2048
"""Rows of a forward in the thread: more of them only make others wait."""

_FEW_ROWS = 256
"""Rows of a request that is scored in the loop, and of a forward there: some milliseconds."""


class PreparedRows(NamedTuple):
    """Rows as the model reads them."""

    dense: NDArray[np.float32]
    ids: NDArray[np.int64]


Logits = NDArray[np.float32]


class QueueFullError(DqrmError):
    """More rows wait than may; whoever asked should come again later."""


class ServerDefectError(DqrmError):
    """Scoring failed for a reason that is none of the request's."""


@dataclass(frozen=True)
class _Job:
    num_rows: int
    prepare: Callable[[Model], PreparedRows]
    answer: "asyncio.Future[Logits]"


class ScoringQueue:
    """Scores in the event loop that asks and in a thread; `current` gives the model of the next forward."""

    def __init__(self, current: Callable[[], Model], most_waiting_rows: int, watch: Callable[[int], None]) -> None:
        """`watch` is told the rows of each forward."""
        self._current, self._most_waiting, self._watch = current, most_waiting_rows, watch
        self._few: deque[_Job] = deque()
        self._many: deque[_Job] = deque()
        self._waiting_rows = 0
        self._thread = ThreadPoolExecutor(1, "dqrm-score")
        self._is_thread_busy = False

    async def logits(self, num_rows: int, prepare: Callable[[Model], PreparedRows]) -> Logits:
        """Returns the logits of rows that `prepare` makes for the model that will score them."""
        # One request alone may have more rows than may wait: its own limit has let it in.
        if self._waiting_rows and self._waiting_rows + num_rows > self._most_waiting:
            raise QueueFullError(f"{self._waiting_rows:,} rows wait already; try again later")
        loop = asyncio.get_running_loop()
        job = _Job(num_rows, prepare, loop.create_future())
        self._waiting_rows += num_rows
        try:
            if num_rows > _FEW_ROWS:
                self._many.append(job)
                self._use_thread(loop)
            else:
                self._few.append(job)
                if len(self._few) == 1:
                    loop.call_soon(self._score_few, loop)  # after whatever else has come in by now
            return await job.answer
        finally:
            self._waiting_rows -= num_rows

    def close(self) -> None:
        """Ends the thread once it has scored what it began."""
        self._thread.shutdown()

    def _score_few(self, loop: asyncio.AbstractEventLoop) -> None:
        for job, outcome in self._outcomes(_taken(self._few, _FEW_ROWS)):
            _settle(job, outcome)
        if self._few:
            loop.call_soon(self._score_few, loop)

    def _use_thread(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._is_thread_busy or not self._many:
            return
        jobs = _taken(self._many, _MOST_ROWS)
        self._is_thread_busy = True

        def settle(scored: "asyncio.Future[list[tuple[_Job, Logits | Exception]]]") -> None:
            self._is_thread_busy = False
            for job, outcome in scored.result():
                _settle(job, outcome)
            self._use_thread(loop)

        loop.run_in_executor(self._thread, self._outcomes, jobs).add_done_callback(settle)

    def _outcomes(self, jobs: list[_Job]) -> list[tuple[_Job, Logits | Exception]]:
        """Returns the logits of each job, or what went wrong with it."""
        model = self._current()
        outcomes: list[tuple[_Job, Logits | Exception]] = []
        prepared: list[tuple[_Job, PreparedRows]] = []
        for job in jobs:
            try:
                prepared.append((job, job.prepare(model)))
            except Exception as error:
                outcomes.append((job, error))
        try:
            outcomes += self._scored(model, prepared)
        except Exception:  # one of them is at fault: each by itself
            for one in prepared:
                try:
                    outcomes += self._scored(model, [one])
                except Exception as error:
                    outcomes.append((one[0], error))
        return outcomes

    def _scored(self, model: Model, prepared: list[tuple[_Job, PreparedRows]]) -> list[tuple[_Job, Logits]]:
        """Scores all rows in one forward."""
        if not prepared:
            return []
        if len(prepared) == 1:
            ((job, rows),) = prepared
            logits = model.logits_of_ids(*rows)
            self._watch(len(logits))
            return [(job, logits)]
        jobs, parts = zip(*prepared, strict=True)
        dense, ids = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        logits = model.logits_of_ids(dense, ids)
        self._watch(len(logits))
        ends = np.cumsum([len(part.dense) for part in parts])
        return list(zip(jobs, np.split(logits, ends[:-1]), strict=True))


def _taken(jobs: deque[_Job], most_rows: int) -> list[_Job]:
    """Takes jobs for one forward; those that nobody waits for any more are left out."""
    taken: list[_Job] = []
    rows = 0
    while jobs and (not taken or rows + jobs[0].num_rows <= most_rows):
        job = jobs.popleft()
        if not job.answer.cancelled():
            taken.append(job)
            rows += job.num_rows
    return taken


def _settle(job: _Job, outcome: Logits | Exception) -> None:
    if job.answer.done():  # nobody waits any more
        return
    if not isinstance(outcome, Exception):
        job.answer.set_result(outcome)
    elif isinstance(outcome, DqrmError):
        job.answer.set_exception(outcome)
    else:
        job.answer.set_exception(ServerDefectError(f"{type(outcome).__name__}: {outcome}"))
