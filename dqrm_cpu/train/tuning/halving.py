"""Successive halving: all candidates on few steps, the better half of them on twice as many, and once more."""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from dqrm_cpu.metrics.click import ClickMetrics
from dqrm_cpu.train.tuning.candidates import Values

_MOST_ROUNDS = 3


class Round(NamedTuple):
    """A round of a search: how many trials it has at most, and the steps that each of them trains from the start."""

    steps: int
    trials: int


@dataclass(frozen=True)
class Trial:
    """A candidate, and its validation metrics after each round that it took part in; None: training diverged."""

    values: Values
    scores: tuple[ClickMetrics | None, ...] = ()

    @property
    def diverged(self) -> bool:
        return None in self.scores


def plan_rounds(trials: int, longest_steps: int) -> tuple[Round, ...]:
    """Plans rounds that each have half the trials of the one before, and twice the steps; at least two in the last."""
    count = min(_MOST_ROUNDS, max(trials.bit_length() - 1, 1))
    return tuple(Round(max(longest_steps >> (count - 1 - k), 1), -(-trials // 2**k)) for k in range(count))


def next_trial(rounds: Sequence[Round], trials: Sequence[Trial], by: str = "auc") -> tuple[int, int] | None:
    """Finds what is to be tried next: the numbers of a round and of a trial, from 0; None at the end.

    `by` names the figure that decides, as in `ClickMetrics.is_better_than`.
    """
    for number in range(len(rounds)):
        for trial in sorted(_field(rounds, trials, number, by)):
            if len(trials[trial].scores) == number:
                return number, trial
    return None


def best_trial(trials: Sequence[Trial], by: str = "auc") -> int | None:
    """Finds the best of those that came furthest, of equals the first; None where all have diverged."""
    sound = [number for number, trial in enumerate(trials) if trial.scores and not trial.diverged]
    furthest = max((len(trials[number].scores) for number in sound), default=0)
    return next(_ranked(trials, [n for n in sound if len(trials[n].scores) == furthest], furthest - 1, by), None)


def last_within(trials: Sequence[Trial], tolerance: float) -> int | None:
    """Finds the last trial whose AUC is at most so far below the best one; None where all have diverged."""
    aucs = {number: trial.scores[-1].auc for number, trial in enumerate(trials) if trial.scores and trial.scores[-1]}
    known = {number: auc for number, auc in aucs.items() if not math.isnan(auc)}
    return max((number for number, auc in known.items() if auc >= max(known.values()) - tolerance), default=None)


def steps_done(rounds: Sequence[Round], trials: Sequence[Trial]) -> int:
    """Counts the steps of all trials so far."""
    return sum(rounds[number].steps for trial in trials for number in range(len(trial.scores)))


def scored(trials: Sequence[Trial], number: int, metrics: ClickMetrics | None) -> tuple[Trial, ...]:
    """Returns the trials with another score of trial `number`."""
    trial = trials[number]
    return (*trials[:number], replace(trial, scores=(*trial.scores, metrics)), *trials[number + 1 :])


def _field(rounds: Sequence[Round], trials: Sequence[Trial], number: int, by: str) -> Sequence[int]:
    """Returns the trials of a round, the best of the one before first."""
    if number == 0:
        return range(len(trials))
    before = [n for n in _field(rounds, trials, number - 1, by) if None not in trials[n].scores[:number]]
    return list(_ranked(trials, before, number - 1, by))[: rounds[number].trials]


def _ranked(trials: Sequence[Trial], numbers: Sequence[int], round_number: int, by: str) -> Iterator[int]:
    """Yields trials from the best to the worst after a round; of equals the first candidate first."""

    def compare(one: int, other: int) -> int:
        a, b = trials[one].scores[round_number], trials[other].scores[round_number]
        assert a is not None
        assert b is not None
        return int(b.is_better_than(a, by)) - int(a.is_better_than(b, by))

    yield from sorted(sorted(numbers), key=functools.cmp_to_key(compare))
