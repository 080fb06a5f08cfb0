"""What comes out of a benchmark, one model for all of them: timings by contestant, derived figures, ratios."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


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
        """Returns the lower and the upper quartile."""
        if len(self.samples) == 1:
            return self.samples[0], self.samples[0]
        lower, _, upper = statistics.quantiles(self.samples, n=4, method="inclusive")
        return lower, upper


@dataclass(frozen=True)
class ServedLoad:
    """How a server bore a load of requests that came at a fixed rate."""

    requests: int
    failed: int
    failures: Mapping[str, int]  # by status, or by what broke
    per_s: float  # requests that came in a second
    most_per_s: float  # that the server answered when as many came as it could take
    cpu_s: float  # the server's for a request
    p99_s: float  # latency that 99% of the requests stayed below
    p999_s: float
    largest_s: float
    latest_start_s: float  # by how much the load was late with a request, which counts as latency


@dataclass(frozen=True)
class ContestantResult:
    """A contestant that took part. Figures that a benchmark does not measure are None."""

    name: str
    about: str
    timing: Timing
    rows: int | None = None  # that it went through in each round
    peak_bytes: int | None = None  # of its process' memory, median over the rounds
    bytes_per_step: Mapping[str, float] | None = None  # for the other ranks, by rank 0
    phases_s: Mapping[str, float] | None = None  # medians, on rank 0
    load: ServedLoad | None = None

    @property
    def rows_per_s(self) -> float | None:
        return None if self.rows is None else self.rows / self.timing.median_s

    @property
    def bytes_in_all(self) -> float:
        return sum((self.bytes_per_step or {}).values())


@dataclass(frozen=True)
class DerivedFigure:
    """A time computed from the medians of two contestants."""

    name: str
    about: str
    median_s: float
    formula: str


@dataclass(frozen=True)
class GroupResult:
    """Contestants that took turns; `absent` says by name why others did not."""

    name: str
    baseline: str  # the one that a table shows the others against
    entries: tuple[ContestantResult, ...]
    absent: Mapping[str, str]

    def medians_s(self) -> dict[str, float]:
        """Returns medians by the names of contestants."""
        return {entry.name: entry.timing.median_s for entry in self.entries}


@dataclass(frozen=True)
class CaseResult:
    """One case of a benchmark: what it was, who took turns, and what follows from their times."""

    name: str
    about: str
    facts: Mapping[str, Any]  # sizes of the case, by their names in the document
    groups: tuple[GroupResult, ...]
    derived: tuple[DerivedFigure, ...] = ()
    summaries: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Figures by contestant that are no times, by their names in the document."""

    def medians_s(self) -> dict[str, float]:
        """Returns medians by the names of contestants and of derived figures."""
        medians = {name: median_s for group in self.groups for name, median_s in group.medians_s().items()}
        return medians | {figure.name: figure.median_s for figure in self.derived}

    def samples_s(self) -> dict[str, tuple[float, ...]]:
        """Returns samples, round by round, by the names of contestants."""
        return {entry.name: entry.timing.samples for group in self.groups for entry in group.entries}


@dataclass(frozen=True)
class Ratio:
    """Median of `numerator` over median of `denominator`; below 1 the numerator is faster.

    `minus` is subtracted from the numerator's median first: what a part of it costs.
    """

    key: str
    variant: str
    numerator: str
    denominator: str
    minus: str | None = None


@dataclass(frozen=True)
class Comparison:
    """A ratio with what it was computed from.

    `by_round` is the median of what the rounds gave, each by itself: where a machine has slow and fast minutes, medians
    of two contestants may come from different ones, a round seldom does. None: not timed round by round.
    """

    ratio: Ratio
    numerator_s: float
    denominator_s: float
    minus_s: float | None
    by_round: float | None = None

    @property
    def value(self) -> float:
        return (self.numerator_s - (self.minus_s or 0.0)) / self.denominator_s


Samples = Mapping[str, Sequence[float]]
"""Seconds by contestant, round by round."""


def compare(
    ratios: Iterable[Ratio], medians_s: Mapping[str, float], samples_s: Samples | None = None
) -> tuple[Comparison, ...]:
    """Computes those ratios whose contestants took part."""
    compared = []
    for ratio in ratios:
        names = (ratio.numerator, ratio.denominator, *([ratio.minus] if ratio.minus else []))
        if all(name in medians_s for name in names):
            minus_s = medians_s[ratio.minus] if ratio.minus else None
            by_round = _by_round(names, samples_s or {})
            compared.append(
                Comparison(ratio, medians_s[ratio.numerator], medians_s[ratio.denominator], minus_s, by_round)
            )
    return tuple(compared)


def _by_round(names: Sequence[str], samples_s: Samples) -> float | None:
    """Returns the median of the rounds' ratios. `names`: numerator, denominator and what is taken away, if anything."""
    if any(name not in samples_s for name in names):
        return None
    rounds = zip(*(samples_s[name] for name in names), strict=True)
    return float(statistics.median((above - sum(minus)) / below for above, below, *minus in rounds))
