"""What a profile found, by variant and rank."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from dqrm_cpu.comm.exchange.sent_bytes import SentBytes
from dqrm_cpu.profile.spans import SpanSummary
from dqrm_cpu.profiler.floors import RowFloors
from dqrm_cpu.profiler.timeline import Timeline
from dqrm_cpu.profiler.variants import Variant


class SentPerStep(NamedTuple):
    """Means of `SentBytes`."""

    indices: float
    values: float
    scales: float
    mlp: float

    @classmethod
    def of(cls, sent: SentBytes, steps: int) -> Self:
        return cls(*(part / max(steps, 1) for part in sent))

    @property
    def of_tables(self) -> float:
        return self.indices + self.values + self.scales


@dataclass(frozen=True)
class RankProfile:
    """What one rank saw of one variant.

    `wire_floor`: the bytes per second that it sends when it does nothing but send as much; None: it sends nothing.
    """

    summary: SpanSummary
    sent: SentPerStep
    wire_floor: float | None

    def as_list(self) -> list[Any]:
        """Plain values, to be sent."""
        return [self.summary.as_dict(), self.sent, self.wire_floor]

    @classmethod
    def from_list(cls, values: Sequence[Any]) -> Self:
        """What `as_list` gave."""
        summary, sent, wire_floor = values
        return cls(SpanSummary.from_dict(summary), SentPerStep(*sent), wire_floor)


@dataclass(frozen=True)
class VariantProfile:
    """A variant, by rank."""

    variant: Variant
    ranks: tuple[RankProfile, ...]


class StepWork(NamedTuple):
    """Of a step, on average over some: what this rank looks up and changes."""

    lookups: float  # ids
    changed_rows: float
    merged: bool  # those of all ranks, from a gradient of rows; otherwise straight from the pooled gradient


@dataclass(frozen=True)
class Floors:
    """How quickly memory is read in order, and rows are where ids are known one by one, and what there is to do."""

    reading: float  # bytes per second
    rows: RowFloors | None
    work: StepWork


@dataclass(frozen=True)
class Profile:
    """The same on every rank, but for the floors, which are its own. Timelines are on the clock of rank 0."""

    variants: tuple[VariantProfile, ...]
    timelines: tuple[Timeline, ...]
    floors: Floors
