"""What came out of a benchmark: timings by contestant, derived figures, ratios of medians."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dqrm_cpu.bench.benchmark import Amortized, Ratio
from dqrm_cpu.bench.cases import Case
from dqrm_cpu.bench.timing import Timing


@dataclass(frozen=True)
class Entry:
    """A contestant that took part."""

    name: str
    about: str
    timing: Timing

    @property
    def median_s(self) -> float:
        return self.timing.median_s


@dataclass(frozen=True)
class DerivedEntry:
    """A figure computed from the medians of two contestants."""

    name: str
    about: str
    median_s: float
    formula: str


@dataclass(frozen=True)
class GroupResult:
    """Contestants that took turns; `absent` says by name why others did not."""

    name: str
    baseline: str
    entries: tuple[Entry, ...]
    absent: Mapping[str, str]


@dataclass(frozen=True)
class CaseResult:
    """One case of a benchmark."""

    case: Case
    num_batches: int  # different ones in the pool
    groups: tuple[GroupResult, ...]
    derived: tuple[DerivedEntry, ...]

    def medians_s(self) -> dict[str, float]:
        """By the names of contestants and of derived figures."""
        entries: list[Entry | DerivedEntry] = [entry for group in self.groups for entry in group.entries]
        return {entry.name: entry.median_s for entry in (*entries, *self.derived)}

    def samples_s(self) -> dict[str, tuple[float, ...]]:
        """By the names of contestants, round by round."""
        return {entry.name: entry.timing.samples for group in self.groups for entry in group.entries}


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


def amortized_entries(amortized: Iterable[Amortized], entries: Mapping[str, Entry]) -> tuple[DerivedEntry, ...]:
    """Those whose two contestants took part."""
    derived = []
    for figure in amortized:
        if figure.kept in entries and figure.found in entries:
            kept_s, found_s = entries[figure.kept].median_s, entries[figure.found].median_s
            formula = f"{figure.kept} + ({figure.found} - {figure.kept}) / {figure.period}"
            median_s = kept_s + (found_s - kept_s) / figure.period
            derived.append(DerivedEntry(figure.name, figure.about, median_s, formula))
    return tuple(derived)


Samples = Mapping[str, Sequence[float]]
"""Seconds by contestant, round by round."""


def compare(
    ratios: Iterable[Ratio], medians_s: Mapping[str, float], samples_s: Samples | None = None
) -> tuple[Comparison, ...]:
    """Those ratios whose contestants took part."""
    compared = []
    for ratio in ratios:
        names = (ratio.numerator, ratio.denominator, *([ratio.minus] if ratio.minus else []))
        if all(name in medians_s for name in names):
            minus_s = medians_s[ratio.minus] if ratio.minus else None
            by_round = _by_round(names, samples_s or {})
            figures = medians_s[ratio.numerator], medians_s[ratio.denominator], minus_s, by_round
            compared.append(Comparison(ratio, *figures))
    return tuple(compared)


def _by_round(names: Sequence[str], samples_s: Samples) -> float | None:
    """Numerator, denominator and what is taken away, if anything."""
    if any(name not in samples_s for name in names):
        return None
    rounds = zip(*(samples_s[name] for name in names), strict=True)
    return float(statistics.median((above - sum(minus)) / below for above, below, *minus in rounds))
