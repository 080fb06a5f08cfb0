"""How quickly this machine does what phases cannot do without: what their bandwidths are held against."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch

from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.data.batch import Batch
from dqrm_cpu.kernels.types import Tables

FLOAT_BYTES = 4

_READ_BYTES = 1 << 30
_READ_ROUNDS = 5
_MESSAGE_ROUNDS = 20


class RowFloors(NamedTuple):
    """Bytes per second, of rows at the places that batches name."""

    reading: float
    rewriting: float


def reading_floor(num_ranks: int) -> float:
    """Bytes per second at which all threads together read memory in order; the best of a few rounds."""
    # Here, because it compiles.
    from dqrm_cpu.bench.reading import read_all

    num_bytes = _READ_BYTES // num_ranks
    words = torch.ones(num_bytes // 8, dtype=torch.int64).numpy()
    best = float("inf")
    for _ in range(_READ_ROUNDS):
        start = perf_counter()
        read_all(words)
        best = min(best, perf_counter() - start)
    return num_bytes / best


def row_floors(tables: Tables, batches: Sequence[Batch]) -> RowFloors | None:
    """The rows of every batch are read, then those of every batch read and written again: as in a step, a while later.

    The best batch counts. Only of rows that batches name one by one. The weights stay as they are.
    """
    from dqrm_cpu.bench.reading import read_rows, rewrite_rows
    from dqrm_cpu.kernels.numba_impl.arena import arena_of

    if not batches or any(batch.offsets is not None or not batch.size for batch in batches):
        return None
    arena, row_bytes = arena_of(tables), tables.dim * FLOAT_BYTES
    gradient = torch.zeros(max(batch.size for batch in batches), 1 + tables.num_tables, tables.dim)

    def read(batch: Batch) -> None:
        read_rows(arena, batch.ids.data_ptr(), batch.size)

    def rewrite(batch: Batch) -> None:
        rewrite_rows(arena, batch.ids.data_ptr(), batch.size, gradient.data_ptr())

    num_ids = [batch.ids.numel() for batch in batches]
    moved = [ids + 2 * distinct_rows([batch]) for ids, batch in zip(num_ids, batches, strict=True)]
    return RowFloors(
        max(ids * row_bytes / seconds for ids, seconds in zip(num_ids, _seconds(read, batches), strict=True)),
        max(rows * row_bytes / seconds for rows, seconds in zip(moved, _seconds(rewrite, batches), strict=True)),
    )


def _seconds(work: Callable[[Batch], None], batches: Sequence[Batch]) -> list[float]:
    """Of each batch; the first is there once more, because its first time compiles."""
    found = []
    for batch in (batches[0], *batches):
        start = perf_counter()
        work(batch)
        found.append(perf_counter() - start)
    return found[1:]


def wire_floor(transport: Transport, message_bytes: int) -> float:
    """Bytes per second that this rank sends when none does anything else, at best; every rank calls it."""
    header, payload = np.zeros(64, dtype=np.int32), np.zeros(message_bytes, dtype=np.uint8)
    best = float("inf")
    for _ in range(_MESSAGE_ROUNDS):
        transport.barrier()
        start = perf_counter()
        transport.allgather_small(header)
        transport.allgatherv(payload)
        best = min(best, perf_counter() - start)
    return message_bytes * (transport.size - 1) / best


def distinct_rows(shares: Sequence[Batch]) -> int:
    """Of all tables: how many rows these parts of one batch change."""
    by_table = [_ids_of_tables(batch) for batch in shares if batch.size]
    return sum(np.unique(torch.cat(of_table)).size for of_table in zip(*by_table, strict=True))


def _ids_of_tables(batch: Batch) -> list[torch.Tensor]:
    if batch.offsets is None:
        return list(batch.ids)
    ends = batch.offsets[:: batch.size].tolist()
    return [batch.ids[start:end] for start, end in pairwise(ends)]
