"""What a benchmark consists of: contestants in groups, figures derived from them, and what is compared with what."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dqrm_cpu.bench.arena import Arenas
from dqrm_cpu.bench.cases import Case
from dqrm_cpu.bench.contestant import Contestant


@dataclass(frozen=True)
class Group:
    """Contestants that take turns, and are only ever compared with each other."""

    name: str
    contestants: Sequence[Contestant]
    baseline: str  # the one that a table shows the others against


@dataclass(frozen=True)
class Amortized:
    """A step whose expensive part comes once in `period` iterations: kept + (found - kept) / period.

    Thousands of steps would have to be timed to see that part often enough. The steps are the same but for it.
    """

    name: str
    about: str
    kept: str  # the contestant that leaves it out
    found: str  # the contestant that does it at every step
    period: int


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
class Benchmark:
    """`groups` makes the contestants of a case; they allocate nothing before their `setup`."""

    name: str
    cases: tuple[str, ...]  # run unless others are asked for
    groups: Callable[[Case, Arenas], Sequence[Group]]
    amortized: tuple[Amortized, ...]
    ratios: tuple[Ratio, ...]
