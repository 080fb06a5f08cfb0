"""How many threads compute a step: fewer while other programs take the cores away.

OpenMP's threads wait for each other at the end of every parallel region. One that does not get its core holds up all
others, which spin meanwhile: beside other programs all threads together are often slower than one. What is computed
does not depend on how many there are, so their number may follow what is faster at the moment.
"""

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

_TASKS = Path("/proc/self/task")
_STARTED_FIELD = 19
"""Of /proc/self/stat, behind the name in brackets: when the process started, in ticks since the machine did."""

_LOOK_EVERY_S = 0.5
_WINDOW_STEPS = 16
"""Steps between two looks, at the least."""

_TRIAL_STEPS = 8
_WAITED_SHARE = 0.25
"""So many seconds that threads waited for cores, per second, make it worth trying fewer threads."""

_FASTER = 0.95
"""A trial wins with a median step shorter than so many times the one before."""

_LONGEST_PAUSE = 64
"""Looks between two trials of fewer threads that brought nothing, at the most."""

_MORE_AFTER_S, _TRIAL_SHARE = 5.0, 0.02
"""More threads are tried so long after the last trial, but such trials take no greater share of the time."""


class _Trial(NamedTuple):
    back_to: int  # the threads before it
    median_s: float  # of a step with them
    began: float


class ThreadCount:
    """The number of threads of torch and of the kernels, from 1 to `most`, chosen by the time that steps take.

    `waited` returns the seconds that threads of this process were ready to run and had no core, None where the system
    does not tell; then nothing is ever changed. `crowded`: half of the threads begin, until all of them are tried.
    """

    def __init__(
        self,
        most: int,
        say: Callable[[str], None],
        waited: Callable[[], float | None] | None = None,
        clock: Callable[[], float] = time.perf_counter,
        choose: Callable[[int], None] = torch.set_num_threads,
        crowded: bool = False,
    ) -> None:
        self._most, self._say, self._waited, self._clock, self._choose = most, say, waited or waited_s, clock, choose
        self.count = most
        self._steps: list[float] = []
        self._trial: _Trial | None = None
        self._pause, self._pauses_left = 1, 0
        self._more_at, self._said = 0.0, False
        self._looked_at, self._waited_then = clock(), self._waited() if most > 1 else None
        if crowded and self._waited_then is not None:
            self._more_at = clock() + _MORE_AFTER_S
            self._use(most // 2)

    def step_took(self, seconds: float) -> None:
        """Notes the time of a step; now and then it looks whether another number of threads would do better."""
        if self._waited_then is None:
            return
        self._steps.append(seconds)
        if self._trial is not None:
            if len(self._steps) == _TRIAL_STEPS:
                self._end_trial(self._trial)
        elif len(self._steps) >= _WINDOW_STEPS and self._clock() - self._looked_at >= _LOOK_EVERY_S:
            self._look()

    def restore(self) -> None:
        """Has all threads compute again."""
        if self.count != self._most:
            self._use(self._most)

    def _look(self) -> None:
        now = self._clock()
        share = self._share_waited(now)
        if self.count < self._most:
            self._say_once()
        if self.count < self._most and now >= self._more_at:
            self._begin_trial(min(self._most, 2 * self.count), now)
        elif self.count > 1 and share > _WAITED_SHARE and self._pauses_left == 0:
            self._begin_trial(max(1, self.count // 2), now)
        else:
            self._pauses_left = max(0, self._pauses_left - 1)
            self._steps.clear()

    def _share_waited(self, now: float) -> float:
        """Returns the seconds that threads waited for a core since the last look, per second."""
        waited, before, since_s = self._waited(), self._waited_then, now - self._looked_at
        self._looked_at, self._waited_then = now, waited
        return (waited - before) / since_s if waited is not None and before is not None else 0.0

    def _begin_trial(self, count: int, now: float) -> None:
        self._trial = _Trial(self.count, statistics.median(self._steps), now)
        self._use(count)

    def _end_trial(self, trial: _Trial) -> None:
        now = self._clock()
        better = statistics.median(self._steps) < _FASTER * trial.median_s
        fewer = self.count < trial.back_to
        self._trial = None
        if not better:
            self._use(trial.back_to)
        if fewer:
            self._pause = 1 if better else min(2 * self._pause, _LONGEST_PAUSE)
            self._pauses_left = 0 if better else self._pause
            if better:
                self._say_once()
        self._more_at = now + max(_MORE_AFTER_S, (now - trial.began) / _TRIAL_SHARE)
        self._steps.clear()
        self._share_waited(now)

    def _say_once(self) -> None:
        if not self._said:
            self._said = True
            self._say(
                "other programs, or a limit of CPU time, keep this one's threads waiting for cores: "
                f"{self.count} of {self._most} threads compute the steps for now, which is faster; "
                "the model is the same"
            )

    def _use(self, count: int) -> None:
        self.count = count
        self._steps.clear()
        self._choose(count)


def is_crowded() -> bool:
    """Says whether this process waited for cores since it started, though no more than a thread or two were busy.

    Beside a program for each core such a thread waits half of the time; beside none, and beside a few on many cores,
    hardly ever.
    """
    waited, age = waited_s(), _age_s()
    return waited is not None and age > 0 and waited > _WAITED_SHARE * age


def _age_s() -> float:
    """Returns the seconds since this process started; 0 where the system does not tell."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[_STARTED_FIELD]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return 0.0


def waited_s() -> float | None:
    """Returns the seconds that this process's threads were ready to run and had no core; None where nobody counts."""
    total = 0
    try:
        for task in os.listdir(_TASKS):  # noqa: PTH208  # twice as quick
            try:
                total += int((_TASKS / task / "schedstat").read_bytes().split()[1])
            except FileNotFoundError:
                if not (_TASKS / task).exists():  # it ended meanwhile
                    continue
                return None
    except (OSError, IndexError, ValueError):
        return None
    return total * 1e-9
