"""Stochastic rounding: what it may give, that it is right on average, and what its keys depend on."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comm_oracle import DIM, NUM_TABLES, sparse_input
from dqrm_cpu.comm.exchange.codec import INTEGER_LIMITS
from dqrm_cpu.comm.exchange.integer_codec import GradientKeys
from dqrm_cpu.kernels.gradient_codes import round_gradient
from dqrm_cpu.kernels.hashing import splitmix64
from dqrm_cpu.kernels.types import SparseGrad

SCALES = np.array([0.5, 0.013, 3.0], dtype=np.float32)


def tables_of(grad: SparseGrad) -> np.ndarray:
    return np.repeat(np.arange(NUM_TABLES), np.diff(grad.table_ptr.numpy()))


def oracle(grad: SparseGrad, scales: np.ndarray, key: int) -> np.ndarray:
    """One value after the other, in Python's integers."""
    out = np.empty(tuple(grad.values.shape), dtype=np.float32)
    for entry, (table, row) in enumerate(zip(tables_of(grad).tolist(), grad.rows.tolist(), strict=True)):
        row_key = splitmix64(splitmix64(key, table), row)
        for column in range(out.shape[1]):
            value = grad.values[entry, column].numpy() / scales[table]
            chance = (splitmix64(row_key, column) >> 40) / 2**24
            out[entry, column] = (np.floor(value) + np.float32(chance < value - np.floor(value))) * scales[table]
    return out


@settings(max_examples=15)
@given(rank=st.integers(0, 9), key=st.integers(0, 2**64 - 1), empty=st.booleans())
def test_it_equals_the_oracle(rank: int, key: int, empty: bool) -> None:
    grad = sparse_input(rank, empty)
    assert (
        round_gradient(grad, torch.from_numpy(SCALES), key).values.numpy().tobytes()
        == oracle(grad, SCALES, key).tobytes()
    )


@settings(max_examples=15)
@given(key=st.integers(0, 2**64 - 1))
def test_each_value_goes_to_one_of_its_two_neighbours(key: int) -> None:
    grad = sparse_input(0)
    scales = SCALES[tables_of(grad)][:, None]
    inside = np.abs(grad.values.numpy()) < INTEGER_LIMITS["int16"] * scales
    values = grad.values.numpy() / scales
    multiples = round_gradient(grad, torch.from_numpy(SCALES), key).values.numpy() / scales
    assert (np.abs(np.rint(multiples) - values)[inside] < 1).all()
    # Far less than the half that the codec beneath would need to round it elsewhere.
    assert (np.abs(multiples - np.rint(multiples))[inside] < 0.01).all()


def test_multiples_of_the_scale_stay() -> None:
    grad = sparse_input(0)
    whole = grad._replace(values=torch.arange(grad.values.numel()).reshape(-1, DIM) * 0.5)
    scales = np.full(NUM_TABLES, 0.5, dtype=np.float32)
    assert torch.equal(round_gradient(whole, torch.from_numpy(scales), 5).values, whole.values)


@pytest.mark.parametrize("value", [0.1, -0.1, 0.5, 126.75, -32766.25, 32766.9])
def test_the_mean_is_the_value(value: float) -> None:
    rows = 20_000
    grad = SparseGrad(torch.tensor([0, rows]), torch.arange(rows, dtype=torch.int32), torch.full((rows, 8), value))
    found = (
        round_gradient(grad, torch.from_numpy(np.ones(1, dtype=np.float32)), key=11).values.numpy().astype(np.float64)
    )
    exact = float(np.float32(value))
    part = exact - np.floor(exact)
    deviation = np.sqrt(part * (1 - part) / found.size)
    assert abs(found.mean() - exact) < 5 * deviation, "five standard deviations of that many throws"


def test_keys_follow_from_seed_step_and_rank() -> None:
    keys = [
        GradientKeys(seed, range(rank, rank + 1), partial(int, step)).next_key()
        for seed in (1, 2)
        for step in (1, 2)
        for rank in (0, 1)
    ]
    assert len(set(keys)) == len(keys)


def test_simulated_ranks_take_turns() -> None:
    step = [1]
    simulated = GradientKeys(3, range(3), lambda: step[0])
    found = []
    for step[0] in (1, 2):
        found += [simulated.next_key() for _ in range(3)]
    real = [GradientKeys(3, range(rank, rank + 1), partial(int, s)).next_key() for s in (1, 2) for rank in range(3)]
    assert found == real
