"""What phases move through memory, against what this machine can read at all."""

import time
from typing import NamedTuple

import torch

from dqrm_cpu.config import Config
from dqrm_cpu.profile.phases import Phase
from dqrm_cpu.profiler.run import VariantProfile

_FLOAT_BYTES = 4
_FLOOR_BYTES = 1 << 30
_FLOOR_ROUNDS = 5


class Bandwidth(NamedTuple):
    """Of one phase of one variant, on rank 0."""

    variant: str
    phase: Phase
    bytes_per_step: int
    bytes_per_second: float


def reading_floor() -> float:
    """Bytes per second at which all threads together read memory in order; the best of a few rounds."""
    # Here, because it compiles.
    from dqrm_cpu.bench.reading import read_all

    words = torch.ones(_FLOOR_BYTES // 8, dtype=torch.int64).numpy()
    best = float("inf")
    for _ in range(_FLOOR_ROUNDS):
        start = time.perf_counter()
        read_all(words)
        best = min(best, time.perf_counter() - start)
    return _FLOOR_BYTES / best


def bandwidths(profile: VariantProfile, num_ranks: int) -> list[Bandwidth]:
    """Where bytes are known: scans read every table, lookups read the rows of a rank's share of the batch."""
    config, summary = profile.variant.config, profile.ranks[0].summary
    found = []
    for phase, num_bytes in _moved(config, num_ranks).items():
        if phase in summary.phases:
            seconds = summary.phases[phase].total_ms / 1e3 / summary.step.count
            found.append(Bandwidth(profile.variant.name, phase, num_bytes, num_bytes / seconds))
    return found


def _moved(config: Config, num_ranks: int) -> dict[Phase, int]:
    model, quant = config.model, config.quant
    row_bytes = model.embedding_dim * _FLOAT_BYTES
    moved = {}
    if quant.method != "none" and quant.scale_finder == "scan" and quant.scale_period == 1:
        moved[Phase.SCALE] = sum(model.table_rows) * row_bytes
    if config.data.max_bag_size == 1:
        moved[Phase.GATHER_QUANTIZE] = config.train.batch_size // num_ranks * len(model.table_rows) * row_bytes
    return moved
