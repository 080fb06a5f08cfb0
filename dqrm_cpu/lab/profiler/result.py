"""A profile: how it is taken, and what it measured by variant and rank."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

from dqrm_cpu.comm.exchange.settings import SentBytes
from dqrm_cpu.lab.profiler.profiled_variant import TrainingVariant
from dqrm_cpu.lab.profiler.timeline import Timeline
from dqrm_cpu.timing.spans import SpanSummary


@dataclass(frozen=True)
class ProfilePlan:
    """The number of steps to run, and who else observes them."""

    warmup_steps: int
    measured_steps: int  # of each variant, over all rounds
    rounds: int
    compare: bool = False
    itt: bool = False
    torch_folder: Path | None = None  # where torch.profiler's traces go; None: it is not asked

    @property
    def turn_steps(self) -> int:
        return max(self.measured_steps // self.rounds, 1)


class SentPerStep(NamedTuple):
    """The bytes of `SentBytes`, as means of a step."""

    indices: float
    values: float
    scales: float
    mlp: float

    @classmethod
    def of(cls, sent: SentBytes, steps: int) -> Self:
        """Divides what was sent by the number of steps."""
        return cls(*(part / max(steps, 1) for part in sent))

    @property
    def of_tables(self) -> float:
        """The bytes for tables."""
        return self.indices + self.values + self.scales


@dataclass(frozen=True)
class RankProfile:
    """The measurements of one variant on one rank.

    `wire_floor`: the bytes per second that it sends when it does nothing but send as much; None: it sends nothing.
    """

    summary: SpanSummary
    sent: SentPerStep
    wire_floor: float | None


@dataclass(frozen=True)
class VariantProfile:
    """The measurements of one variant on all ranks."""

    variant: TrainingVariant
    ranks: tuple[RankProfile, ...]

    @property
    def name(self) -> str:
        """The name of the variant."""
        return self.variant.name


class RowFloors(NamedTuple):
    """Bytes per second, of rows at the places that batches name."""

    reading: float
    rewriting: float


class StepWork(NamedTuple):
    """The rows that this rank looks up and changes in a step, on average over some."""

    looked_up_bytes: float  # of a row for each id
    changed_rows: float
    changed_bytes: float  # of these rows, once
    merged: bool  # those of all ranks, from a gradient of rows; otherwise straight from the pooled gradient


@dataclass(frozen=True)
class Floors:
    """The speeds at which memory is read in order and rows by their ids, and what there is to do."""

    reading: float  # bytes per second
    rows: RowFloors | None
    work: StepWork


@dataclass(frozen=True)
class StepProfile:
    """A profile, the same on every rank but for the floors, which are its own. Timelines are on the clock of rank 0."""

    variants: tuple[VariantProfile, ...]
    timelines: tuple[Timeline, ...]
    floors: Floors
