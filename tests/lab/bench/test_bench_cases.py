"""Shapes of the cases."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dqrm_cpu.config import check_config
from dqrm_cpu.lab.bench.harness.cases import CASES, cap_tables, quick


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=8), st.integers(1, 100), st.integers(0, 10**6))
def test_capped_tables_fit_and_could_not_be_longer(rows: list[int], dim: int, spare: int) -> None:
    limit = len(rows) * dim * 4 + spare  # room for a row of each at least
    capped = cap_tables(rows, dim, limit)
    longest = max(capped)
    assert sum(capped) * dim * 4 <= limit
    assert capped == tuple(min(number, longest) for number in rows)
    if longest < max(rows):
        assert sum(min(number, longest + 1) for number in rows) * dim * 4 > limit


@pytest.mark.parametrize("name", CASES)
def test_cases_are_valid_configurations(name: str) -> None:
    check_config(CASES[name]().config)
    check_config(quick(CASES[name]()).config)


def test_terabyte_fills_six_gigabytes() -> None:
    size = CASES["terabyte_2048"]().table_bytes
    assert 5.99e9 < size <= 6e9
