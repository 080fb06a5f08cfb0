"""What phases move, against what this machine, or the way to the other ranks, can move at all."""

from collections.abc import Iterator
from typing import NamedTuple

from dqrm_cpu.profile.phases import Phase
from dqrm_cpu.profiler.floors import FLOAT_BYTES
from dqrm_cpu.profiler.result import Floors, Profile, VariantProfile
from dqrm_cpu.quant import finding


class Bandwidth(NamedTuple):
    """Of one phase of one variant, on rank 0; of a step as long as the median."""

    variant: str
    phase: Phase
    bytes_per_step: float
    bytes_per_second: float
    floor_bytes_per_second: float

    @property
    def share(self) -> float | None:
        """Of what is possible; None where the phase was quicker, so that what was measured to be possible is not."""
        share = self.bytes_per_second / self.floor_bytes_per_second if self.floor_bytes_per_second else None
        return None if share is None or share > 1 else share


class _Moved(NamedTuple):
    phase: Phase
    bytes_per_step: float
    floor_bytes_per_second: float


def bandwidths(profile: Profile) -> list[Bandwidth]:
    """Where it is known what must be moved."""
    return [one for found in profile.variants for one in _of_variant(found, profile.floors)]


def _of_variant(found: VariantProfile, floors: Floors) -> Iterator[Bandwidth]:
    phases = found.ranks[0].summary.phases
    for phase, num_bytes, floor in (*_of_tables(found, floors), *_of_wire(found)):
        # A message that travels beside the step takes longer than the step waits for it.
        parts = (Phase.WIRE, Phase.WIRE_HIDDEN) if phase is Phase.WIRE else (phase,)
        seconds = sum(phases[part].median_ms for part in parts if part in phases) / 1e3
        if seconds and num_bytes:
            yield Bandwidth(found.variant.name, phase, num_bytes, num_bytes / seconds, floor)


def _of_tables(found: VariantProfile, floors: Floors) -> Iterator[_Moved]:
    """Scans read every table, lookups the row of every id; updates read a gradient, and read and write rows."""
    config, work = found.variant.config, floors.work
    row_bytes = config.model.embedding_dim * FLOAT_BYTES
    if finding.scans_every_step(config.quant):
        yield _Moved(Phase.SCALE, sum(config.model.table_rows) * row_bytes, floors.reading)
    if floors.rows is None:
        return
    yield _Moved(Phase.GATHER_QUANTIZE, work.lookups * row_bytes, floors.rows.reading)
    gradients = work.changed_rows if work.merged else work.lookups
    state_bytes = 2 * FLOAT_BYTES if config.train.optimizer == "rowwise-adagrad" else 0
    changed_bytes = work.changed_rows * (2 * row_bytes + state_bytes)
    yield _Moved(Phase.EMBEDDING_UPDATE, gradients * row_bytes + changed_bytes, floors.rows.rewriting)


def _of_wire(found: VariantProfile) -> Iterator[_Moved]:
    rank = found.ranks[0]
    if rank.wire_floor is not None:
        yield _Moved(Phase.WIRE, rank.sent.of_tables, rank.wire_floor)
