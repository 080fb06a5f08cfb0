"""Where rows lie: each on one rank, or on all; nobody with much more than a share; the same on every rank."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dqrm_cpu.comm.sharding.placement import REPLICATED_BYTES, Placement, TableLoad, held_bytes, place_tables
from dqrm_cpu.errors import ConfigError

LOADS = st.lists(
    st.builds(
        TableLoad,
        rows=st.one_of(st.integers(1, 100), st.integers(1, 10**9)),
        row_bytes=st.sampled_from([4, 68, 512]),
        lookups=st.floats(0, 1e6),
    ),
    min_size=1,
    max_size=40,
)
RANKS = st.integers(1, 70)


def shares_of_tables(placement: Placement, loads: list[TableLoad]) -> list[float]:
    """The bytes and the lookups of each table, both as shares of those of all that are not replicated."""
    placed = [load for load, everywhere in zip(loads, placement.replicated, strict=True) if not everywhere]
    num_bytes, lookups = sum(load.num_bytes for load in placed), max(sum(load.lookups for load in placed), 1.0)
    return [load.num_bytes / max(num_bytes, 1) + load.lookups / lookups for load in loads]


@given(loads=LOADS, ranks=RANKS)
def test_each_row_lies_on_one_rank_or_on_all(loads: list[TableLoad], ranks: int) -> None:
    placement = place_tables(loads, ranks)
    held = [placement.held_rows(rank) for rank in range(ranks)]
    for table, load in enumerate(loads):
        of_table = sorted(rows[table] for rows in held if rows[table][1])
        if placement.replicated[table]:
            assert load.num_bytes <= REPLICATED_BYTES
            assert of_table == [(0, load.rows)] * ranks
            continue
        end = 0
        for first, count in of_table:
            assert first == end
            end = first + count
        assert end == load.rows
    assert sum(one.num_rows for one in placement.owned) == sum(load.rows for load in loads)


@given(loads=LOADS, ranks=RANKS)
def test_no_rank_has_more_than_its_share_and_a_whole_table(loads: list[TableLoad], ranks: int) -> None:
    """Which is what giving each table to the least loaded rank promises; cut rows are rounded."""
    placement = place_tables(loads, ranks)
    of_tables = shares_of_tables(placement, loads)
    shares = [0.0] * ranks
    for one in placement.stretches:
        shares[one.rank] += of_tables[one.table] * one.num_rows / loads[one.table].rows
    whole = [of_tables[one.table] for one in placement.stretches if one.num_rows == loads[one.table].rows]
    cut = {one.table for one in placement.stretches if one.num_rows < loads[one.table].rows}
    rounded = sum(of_tables[table] / loads[table].rows for table in cut)
    assert max(shares) <= 2 / ranks + max(whole, default=0) + rounded + 1e-9


def test_small_tables_are_everywhere_large_ones_cut_and_the_rest_whole() -> None:
    loads = [TableLoad(rows, 64, 100) for rows in (40, 30_000, 5000, 5000, 5000, 5000)]
    placement = place_tables(loads, 2)
    assert placement.replicated == (True, False, False, False, False, False)
    assert [(one.table, one.num_rows) for one in placement.stretches if one.rank == 0] == [
        (1, 15_000),
        (2, 5000),
        (4, 5000),
    ]
    assert held_bytes(placement, loads, 0) == held_bytes(placement, loads, 1) == 64 * (40 + 15_000 + 10_000)


def test_tables_that_are_cut_begin_on_different_ranks() -> None:
    """The most frequent ids are often the first."""
    placement = place_tables([TableLoad(10**6, 64, 100)] * 4, 4)
    assert sorted(one.rank for one in placement.stretches if one.first_row == 0) == [0, 1, 2, 3]


def test_more_than_the_budget_is_refused() -> None:
    loads = [TableLoad(1 << 24, 64, 100)]
    place_tables(loads, 4, budget_bytes=256 << 20)
    with pytest.raises(ConfigError, match=r"2 ranks would hold up to 0.50 GiB of tables each, 0.25 GiB are allowed"):
        place_tables(loads, 2, budget_bytes=256 << 20)
