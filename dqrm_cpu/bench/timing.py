"""The one place that times: rounds in which every contestant has its turn, so that a busy machine meets all alike."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dqrm_cpu.bench.contestant import Contestant
from dqrm_cpu.bench.pool import Pool

_MOST_STEPS = 512


@dataclass(frozen=True)
class Plan:
    """How long everything is run."""

    rounds: int
    turn_s: float = 0.15  # a turn has as many steps as fit in, 1 to 512
    warmup_rounds: int = 2


@dataclass(frozen=True)
class Timing:
    """Seconds per step of one contestant: one sample per round, the mean of the steps of its turn.

    A mean, so that what a contestant does only now and then counts for what it costs.
    """

    samples: tuple[float, ...]
    steps_per_turn: int

    @property
    def median_s(self) -> float:
        return statistics.median(self.samples)

    @property
    def quartiles_s(self) -> tuple[float, float]:
        """Lower and upper."""
        if len(self.samples) == 1:
            return self.samples[0], self.samples[0]
        lower, _, upper = statistics.quantiles(self.samples, n=4, method="inclusive")
        return lower, upper


def time_interleaved(
    contestants: Sequence[Contestant],
    pool: Pool,
    plan: Plan,
    advance: Callable[[int], None],
    agree: Callable[[float], float] = lambda seconds: seconds,
) -> dict[str, Timing]:
    """Timings by name; `advance` hears of every round that is done.

    `agree` makes of a turn's seconds those of all ranks, where several take the same turns.

    A contestant takes the steps of its turn in a row, as training would, after one that is not timed: it brings the
    MLPs back into the caches. Each round begins with another contestant.
    """
    steps = dict.fromkeys((contestant.name for contestant in contestants), 1)
    samples: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(plan.warmup_rounds + plan.rounds):
        first = number % len(contestants)
        for contestant in (*contestants[first:], *contestants[:first]):
            name = contestant.name
            seconds = agree(_time_turn(contestant, pool, steps[name]))
            if number < plan.warmup_rounds:
                steps[name] = max(1, min(_MOST_STEPS, round(plan.turn_s / seconds)))
            else:
                samples[name].append(seconds)
        advance(number + 1)
    return {name: Timing(tuple(values), steps[name]) for name, values in samples.items()}


def _time_turn(contestant: Contestant, pool: Pool, steps: int) -> float:
    contestant.step(pool.next())
    works = [pool.next() for _ in range(steps)]
    start = time.perf_counter()
    for work in works:
        contestant.step(work)
    return (time.perf_counter() - start) / steps
