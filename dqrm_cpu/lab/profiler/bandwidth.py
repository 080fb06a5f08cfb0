"""What phases move, against what this machine, or the way to the other ranks, can move at all: their floors."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.data.batch import Batch
from dqrm_cpu.kernels.table_groups import TableGroups
from dqrm_cpu.kernels.types import Tables
from dqrm_cpu.lab.profiler.result import Floors, RowFloors, StepProfile, VariantProfile
from dqrm_cpu.quant import scale_schedule
from dqrm_cpu.timing.phases import Phase

_FLOAT_BYTES = 4
_READ_BYTES = 1 << 30
_READ_ROUNDS = 5
_MESSAGE_ROUNDS = 20


class Bandwidth(NamedTuple):
    """The bytes that one phase of one variant moves on rank 0, in a step as long as the median."""

    variant: str
    phase: Phase
    bytes_per_step: float
    bytes_per_second: float
    floor_bytes_per_second: float

    @property
    def share(self) -> float | None:
        """The share of what is possible; None where the phase was quicker than the limit that was measured."""
        share = self.bytes_per_second / self.floor_bytes_per_second if self.floor_bytes_per_second else None
        return None if share is None or share > 1 else share


class _Moved(NamedTuple):
    phase: Phase
    bytes_per_step: float
    floor_bytes_per_second: float


def bandwidths(profile: StepProfile) -> list[Bandwidth]:
    """Returns the bandwidths of phases of which it is known what must be moved."""
    return [one for measured in profile.variants for one in _of_variant(measured, profile.floors)]


def _of_variant(measured: VariantProfile, floors: Floors) -> Iterator[Bandwidth]:
    phases = measured.ranks[0].summary.phases
    for phase, num_bytes, floor in (*_of_tables(measured, floors), *_of_wire(measured)):
        # A message that travels beside the step takes longer than the step waits for it.
        parts = (Phase.WIRE, Phase.WIRE_HIDDEN) if phase is Phase.WIRE else (phase,)
        seconds = sum(phases[part].median_ms for part in parts if part in phases) / 1e3
        if seconds and num_bytes:
            yield Bandwidth(measured.name, phase, num_bytes, num_bytes / seconds, floor)


def _of_tables(measured: VariantProfile, floors: Floors) -> Iterator[_Moved]:
    """Scans read every table, lookups the row of every id; updates read a gradient, and read and write rows."""
    config, work = measured.variant.config, floors.work
    if scale_schedule.scans_every_step(config.quant):
        yield _Moved(Phase.SCALE, row_bytes(config.model.table_rows, config.model.dims), floors.reading)
    if floors.rows is None:
        return
    yield _Moved(Phase.GATHER_QUANTIZE, work.looked_up_bytes, floors.rows.reading)
    gradient_bytes = work.changed_bytes if work.merged else work.looked_up_bytes
    state_bytes = 2 * _FLOAT_BYTES * work.changed_rows if config.train.optimizer == "rowwise-adagrad" else 0
    yield _Moved(Phase.EMBEDDING_UPDATE, gradient_bytes + 2 * work.changed_bytes + state_bytes, floors.rows.rewriting)


def _of_wire(measured: VariantProfile) -> Iterator[_Moved]:
    rank = measured.ranks[0]
    if rank.wire_floor is not None:
        yield _Moved(Phase.WIRE, rank.sent.of_tables, rank.wire_floor)


def reading_floor(num_ranks: int) -> float:
    """Measures the bytes per second at which all threads together read memory in order; the best of a few rounds."""
    # Here, because it compiles.
    from dqrm_cpu.lab.bench.kernels.memory_floors import read_all

    num_bytes = _READ_BYTES // num_ranks
    words = torch.ones(num_bytes // 8, dtype=torch.int64).numpy()
    best = float("inf")
    for _ in range(_READ_ROUNDS):
        start = perf_counter()
        read_all(words)
        best = min(best, perf_counter() - start)
    return num_bytes / best


class _GroupRows(NamedTuple):
    """The rows of one group of tables that a batch names; what an update of them reads is there too."""

    tables: Tables
    ids: Tensor  # int32[T, B]
    gradient: Tensor  # f32[B, 1 + T, D] or more


def row_floors(groups: TableGroups, batches: Sequence[Batch]) -> RowFloors | None:
    """Measures reading the rows of every batch, then reading and writing them again a while later, as a step does.

    The best batch counts. Only of rows that batches name one by one. The weights stay as they are.
    """
    from dqrm_cpu.kernels.jit.arena import arena_of
    from dqrm_cpu.lab.bench.kernels.memory_floors import read_rows, rewrite_rows

    if not batches or any(batch.offsets is not None or not batch.size for batch in batches):
        return None
    most = max(batch.size for batch in batches)
    gradients = [torch.zeros(most, 1 + group.tables.num_tables, group.tables.dim) for group in groups]
    named = [
        [
            _GroupRows(group.tables, batch.ids[list(group.numbers)], gradient)
            for group, gradient in zip(groups, gradients, strict=True)
        ]
        for batch in batches
    ]

    def read(one: _GroupRows) -> None:
        read_rows(arena_of(one.tables), one.ids.data_ptr(), one.ids.shape[1])

    def rewrite(one: _GroupRows) -> None:
        rewrite_rows(arena_of(one.tables), one.ids.data_ptr(), one.ids.shape[1], one.gradient.data_ptr(), True)

    dims = [weight.shape[1] for weight in groups.weights]
    looked_up = [row_bytes(looked_up_rows(batch), dims) for batch in batches]
    changed = [row_bytes(distinct_rows([batch]), dims) for batch in batches]
    moved = [once + 2 * rows for once, rows in zip(looked_up, changed, strict=True)]
    return RowFloors(
        max(size / seconds for size, seconds in zip(looked_up, _seconds(read, named), strict=True)),
        max(size / seconds for size, seconds in zip(moved, _seconds(rewrite, named), strict=True)),
    )


def _seconds(work: Callable[[_GroupRows], None], batches: Sequence[Sequence[_GroupRows]]) -> list[float]:
    """Times each batch, group after group; the first is there once more, because its first time compiles."""
    seconds = []
    for batch in (batches[0], *batches):
        start = perf_counter()
        for one in batch:
            work(one)
        seconds.append(perf_counter() - start)
    return seconds[1:]


def wire_floor(transport: Transport, message_bytes: int) -> float:
    """Measures the bytes per second that this rank sends at best, when none does anything else; every rank calls it."""
    header, payload = np.zeros(64, dtype=np.int32), np.zeros(message_bytes, dtype=np.uint8)
    best = float("inf")
    for _ in range(_MESSAGE_ROUNDS):
        transport.barrier()
        start = perf_counter()
        transport.allgather_small(header)
        transport.allgatherv(payload)
        best = min(best, perf_counter() - start)
    return message_bytes * (transport.size - 1) / best


def row_bytes(rows: Sequence[int], dims: Sequence[int]) -> int:
    """Returns the bytes of so many rows of each table, whose rows have so many values; no rows: of none."""
    return _FLOAT_BYTES * sum(count * dim for count, dim in zip(rows, dims, strict=bool(rows)))


def looked_up_rows(batch: Batch) -> list[int]:
    """Counts the ids of each table."""
    return [ids.numel() for ids in _ids_of_tables(batch)]


def distinct_rows(shares: Sequence[Batch]) -> list[int]:
    """Counts the rows of each table that these parts of one batch change; of empty parts alone there are none."""
    by_table = [_ids_of_tables(batch) for batch in shares if batch.size]
    return [np.unique(torch.cat(of_table)).size for of_table in zip(*by_table, strict=True)]


def _ids_of_tables(batch: Batch) -> list[Tensor]:
    if batch.offsets is None:
        return list(batch.ids)
    ends = batch.offsets[:: batch.size].tolist()
    return [batch.ids[start:end] for start, end in pairwise(ends)]
