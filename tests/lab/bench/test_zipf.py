"""Ids of the benchmarks: in range, Zipf, hot rows scattered."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dqrm_cpu.lab.bench.harness.batch_pool import scatter, zipf_ranks


@given(st.integers(1, 3000))
def test_scatter_is_a_permutation(num_rows: int) -> None:
    rows = scatter(np.arange(num_rows), num_rows)
    assert sorted(rows) == list(range(num_rows))


@given(st.integers(1000, 10**7), st.integers(2, 60))
def test_hot_rows_lie_far_apart(num_rows: int, hot: int) -> None:
    """Golden-ratio steps leave gaps of 1 / (sqrt(5) k) of the circle at least, less what rounding takes from a step."""
    rows = np.sort(scatter(np.arange(hot), num_rows))
    gaps = np.diff([*rows, rows[0] + num_rows])
    assert gaps.min() >= num_rows / (2.5 * hot) - 20 * hot


@given(st.integers(1, 500), st.integers(0, 2**32 - 1))
def test_ranks_are_rows(num_rows: int, seed: int) -> None:
    ranks = zipf_ranks(num_rows, np.random.default_rng(seed).random(50))
    assert ranks.min() >= 0
    assert ranks.max() < num_rows


def test_uniform_numbers_map_to_the_distribution() -> None:
    """For 3 rows and exponent 1 the weights are 1, 1/2, 1/3: rank 0 ends at 6/11, rank 1 at 9/11."""
    uniform = np.array([0.0, 6 / 11 - 1e-9, 6 / 11 + 1e-9, 9 / 11 - 1e-9, 9 / 11 + 1e-9, np.nextafter(1, 0)])
    assert zipf_ranks(3, uniform, exponent=1.0).tolist() == [0, 0, 1, 1, 2, 2]
