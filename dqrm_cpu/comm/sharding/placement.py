"""Where the rows of every table lie: on all ranks, whole on one, or in stretches, one on each rank.

`place_tables` is a pure function of what all ranks know, so that they come to the same placement without a message.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

from dqrm_cpu.config import Config
from dqrm_cpu.errors import ConfigError
from dqrm_cpu.kernels.master_rows import ROW_TYPES, row_bytes

_FLOAT_BYTES = 4

REPLICATED_BYTES = 256 << 10
"""Tables of up to so many bytes are on every rank: their rows are looked up by everybody, and cost no memory."""


class Stretch(NamedTuple):
    """Consecutive rows of a table on one rank; a rank has one stretch of a table at most."""

    table: int
    first_row: int  # in the table
    num_rows: int
    rank: int


@dataclass(frozen=True)
class Placement:
    """The rows that each of `world_size` ranks holds."""

    table_rows: tuple[int, ...]
    world_size: int
    replicated: tuple[bool, ...]  # by table
    stretches: tuple[Stretch, ...]  # of tables that are not replicated, in the order of their rows; none is empty

    @property
    def num_tables(self) -> int:
        return len(self.table_rows)

    def held_rows(self, rank: int) -> list[tuple[int, int]]:
        """Returns for each table the first row that a rank holds, and how many; replicated tables are held whole."""
        held = [
            (0, rows if everywhere else 0) for rows, everywhere in zip(self.table_rows, self.replicated, strict=True)
        ]
        for stretch in self.stretches:
            if stretch.rank == rank:
                held[stretch.table] = (stretch.first_row, stretch.num_rows)
        return held

    def num_held_rows(self, rank: int) -> int:
        """Counts the rows of all tables that a rank holds."""
        return sum(count for _, count in self.held_rows(rank))

    @cached_property
    def owned(self) -> tuple[Stretch, ...]:
        """The stretches of all tables in the order of their rows; those of replicated tables count as rank 0's."""
        everywhere = [
            Stretch(table, 0, rows, 0)
            for table, (rows, is_replicated) in enumerate(zip(self.table_rows, self.replicated, strict=True))
            if is_replicated
        ]
        return tuple(sorted([*everywhere, *self.stretches]))


class TableLoad(NamedTuple):
    """The memory and the lookups that a table costs the rank that holds it."""

    rows: int
    row_bytes: int  # with what the optimizer keeps of a row
    lookups: float  # expected in a batch

    @property
    def num_bytes(self) -> int:
        """The bytes of the whole table."""
        return self.rows * self.row_bytes


def place_tables(
    loads: Sequence[TableLoad],
    world_size: int,
    budget_bytes: int | None = None,
    replicated_bytes: int = REPLICATED_BYTES,
) -> Placement:
    """Places tables on ranks: small ones on all, the largest in stretches over all, the others whole on one.

    Whole tables go, the largest first, to the rank with the least to hold and to answer so far. A table is cut if it
    takes more than half of what a rank holds on average. ConfigError where a rank would hold more than `budget_bytes`.
    """
    replicated = tuple(load.num_bytes <= replicated_bytes for load in loads)
    placed = [table for table in range(len(loads)) if not replicated[table]]
    share = sum(loads[table].num_bytes for table in placed) / world_size
    ordered = sorted(placed, key=lambda table: (-loads[table].num_bytes, table))
    ranks = _Ranks(loads, placed, world_size)
    stretches: list[Stretch] = []
    for table in ordered:
        rows = loads[table].rows
        if world_size > 1 and loads[table].num_bytes > share / 2 and rows >= world_size:
            # Ids often count up from the most frequent: each table begins on another rank.
            first = ranks.next_first()
            cuts = [rows * number // world_size for number in range(world_size + 1)]
            parts = [
                Stretch(table, low, high - low, (first + number) % world_size)
                for number, (low, high) in enumerate(pairwise(cuts))
            ]
        else:
            parts = [Stretch(table, 0, rows, ranks.least_loaded())]
        for part in parts:
            ranks.add(part)
        stretches += parts
    placement = Placement(tuple(load.rows for load in loads), world_size, replicated, tuple(sorted(stretches)))
    _require_budget(placement, loads, budget_bytes)
    return placement


def table_loads(config: Config) -> list[TableLoad]:
    """Returns what each table of a configuration asks of the rank that holds it."""
    model, train = config.model, config.train
    kept_bytes = _FLOAT_BYTES if train.optimizer == "rowwise-adagrad" else 0
    row_type = ROW_TYPES[train.master_rows]
    lookups = train.batch_size * (1 + config.data.max_bag_size) / 2
    return [
        TableLoad(rows, row_bytes(row_type, dim) + kept_bytes, min(lookups, rows))
        for rows, dim in zip(model.table_rows, model.dims, strict=True)
    ]


def placement_of(config: Config, world_size: int) -> Placement | None:
    """Places the tables of a configuration on so many processes; None where each has all of them."""
    if config.comm.tables != "shard" or world_size * config.comm.simulated_ranks == 1:
        return None
    return place_tables(table_loads(config), world_size)


def most_held_rows(config: Config, world_size: int) -> list[int] | None:
    """Returns the rows of each table on the rank that holds the most bytes; None where each has all of them."""
    placement = placement_of(config, world_size)
    if placement is None:
        return None
    loads = table_loads(config)
    rank = max(range(world_size), key=lambda rank: held_bytes(placement, loads, rank))
    return [count for _, count in placement.held_rows(rank)]


def held_bytes(placement: Placement, loads: Sequence[TableLoad], rank: int) -> int:
    """Counts the bytes of the rows that a rank holds."""
    held = placement.held_rows(rank)
    return sum(count * load.row_bytes for (_, count), load in zip(held, loads, strict=True))


class _Ranks:
    """The shares of all bytes and of all lookups that tables placed so far give each rank."""

    def __init__(self, loads: Sequence[TableLoad], placed: Sequence[int], world_size: int) -> None:
        self._loads = loads
        self._bytes_in_all = max(sum(loads[table].num_bytes for table in placed), 1)
        self._lookups_in_all = max(sum(loads[table].lookups for table in placed), 1.0)
        self._shares = [0.0] * world_size
        self._num_cut = 0

    def next_first(self) -> int:
        """Returns the rank on which the next table that is cut begins."""
        self._num_cut += 1
        return (self._num_cut - 1) % len(self._shares)

    def least_loaded(self) -> int:
        """Returns the rank with the smallest share."""
        return min(range(len(self._shares)), key=lambda rank: (self._shares[rank], rank))

    def add(self, stretch: Stretch) -> None:
        """Counts a stretch."""
        load = self._loads[stretch.table]
        part = stretch.num_rows / load.rows
        self._shares[stretch.rank] += part * load.num_bytes / self._bytes_in_all
        self._shares[stretch.rank] += part * load.lookups / self._lookups_in_all


def _require_budget(placement: Placement, loads: Sequence[TableLoad], budget_bytes: int | None) -> None:
    if budget_bytes is None:
        return
    most = max(held_bytes(placement, loads, rank) for rank in range(placement.world_size))
    if most > budget_bytes:
        raise ConfigError(
            f"{placement.world_size} ranks would hold up to {most / 2**30:.2f} GiB of tables each, "
            f"{budget_bytes / 2**30:.2f} GiB are allowed: start more ranks, on more machines"
        )
