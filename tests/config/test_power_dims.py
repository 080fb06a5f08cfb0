"""Dimensions of tables by their rows: the rule against one in exact arithmetic, and the text that names its results."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dqrm_cpu.config.load import load_config
from dqrm_cpu.config.schema import ModelConfig
from dqrm_cpu.config.table_dims import AUTO_DIMS, named_dims, power_dim


def exact_dim(rows: int, most: int) -> int:
    """The multiple of 4 nearest to 6 rows^(1/4), the larger of two: the last k with 4 k - 2 <= 6 rows^(1/4)."""
    k = 1
    while (4 * (k + 1) - 2) ** 4 <= 6**4 * rows:
        k += 1
    return min(most, 4 * k)


@given(st.integers(1, 2**31 - 1), st.integers(1, 4096))
def test_the_rule_is_that_of_exact_arithmetic(rows: int, most: int) -> None:
    assert power_dim(rows, most) == exact_dim(rows, most)


@pytest.mark.parametrize(("rows", "dim"), [(1, 8), (2, 8), (81, 20), (100, 20), (10_000, 60), (20_000, 64)])
def test_dimensions_of_some_tables(rows: int, dim: int) -> None:
    assert power_dim(rows, 64) == dim


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=6), st.integers(1, 64))
def test_named_one_by_one_they_are_the_same(rows: list[int], dim: int) -> None:
    model = ModelConfig(table_rows=tuple(rows), embedding_dim=dim, table_dims=AUTO_DIMS)
    named = model.with_named_dims()
    assert named.dims == model.dims == tuple(power_dim(count, dim) for count in rows)
    assert set(named_dims(named.table_dims).values()) == set(model.dims) - {dim}
    assert named.with_named_dims() == named


def test_the_word_is_no_table(tmp_path: object) -> None:
    config = load_config(None, None, {"model.table_dims": "auto", "model.table_rows": "40,3,500"})
    assert config.model.dims == (16, 8, 16)
