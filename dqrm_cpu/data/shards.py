"""How a global batch is split over the ranks: contiguous shares, so that any number of ranks sees the same order."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shards:
    """Which shares of every global batch this process computes: its own, or all of them when ranks are simulated."""

    mine: tuple[int, ...]
    total: int


def shards_of(rank: int, size: int, simulated_ranks: int) -> Shards:
    """One share for a real rank; all N in one process that simulates N."""
    return Shards(tuple(range(simulated_ranks)), simulated_ranks) if simulated_ranks > 1 else Shards((rank,), size)


def shard_bounds(total: int, shard: int, num_shards: int) -> tuple[int, int]:
    """First and one past the last example of a share; sizes differ by at most one."""
    return total * shard // num_shards, total * (shard + 1) // num_shards
