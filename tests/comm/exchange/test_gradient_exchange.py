"""Every wire in one process that simulates ranks; the same in real worlds is in test_gradient_exchange_real."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comm_oracle import DIM, NUM_TABLES, TABLE_ROWS, merge, same_bits, sparse_input, to_dense
from dqrm_cpu.comm.exchange.gradient_exchange import GradientExchange, GradientShape, TableShape, open_exchange
from dqrm_cpu.comm.exchange.settings import ExchangeSettings
from dqrm_cpu.comm.transport import SingleTransport
from dqrm_cpu.config.schema import WIRES
from dqrm_cpu.errors import ConfigError, TrainingError
from dqrm_cpu.kernels.types import SparseGrad

INTEGER_WIRES = [wire for wire in WIRES if wire.startswith("int")]
SHAPE = GradientShape((TableShape(torch.arange(NUM_TABLES + 1) * TABLE_ROWS, DIM),), 0)


def exchange(ranks: int, **chosen: Any) -> GradientExchange:
    return open_exchange(ExchangeSettings(**chosen), SingleTransport(), ranks, SHAPE, merge)


def scaled(grad: SparseGrad, factor: float) -> SparseGrad:
    return grad._replace(values=grad.values * factor)


def bounded(rank: int, empty: bool = False) -> SparseGrad:
    """Rows as in the oracle, values of one magnitude."""
    grad = sparse_input(rank, empty)
    random = np.random.default_rng([7, rank])
    return grad._replace(values=torch.from_numpy(random.standard_normal(grad.values.shape).astype(np.float32)))


def table_absmax(grads: Sequence[SparseGrad]) -> np.ndarray:
    """f32[ranks, T]."""
    absmax: np.ndarray = np.abs([to_dense(grad) for grad in grads]).max(axis=(2, 3))
    return absmax


def integer_oracle(grads: Sequence[SparseGrad], scales: np.ndarray, limit: int) -> np.ndarray:
    """The sum of the ranks' codes in int64, times the scale: f32[T, rows, D]."""
    scales = np.where(scales < np.finfo(np.float32).tiny, np.float32(1), scales)[:, None, None]
    codes = [np.clip(np.rint(to_dense(grad) / scales), -limit, limit).astype(np.int64) for grad in grads]
    total: np.ndarray = np.sum(codes, axis=0).astype(np.float32) * scales
    return total


@pytest.mark.parametrize("wire", INTEGER_WIRES)
@given(ranks=st.integers(1, 5), seed=st.integers(0, 1000), empty=st.integers(0, 5))
@settings(max_examples=15, deadline=None)
def test_integers_sum_exactly(wire: str, ranks: int, seed: int, empty: int) -> None:
    grads = [bounded(seed + rank, empty=rank == empty) for rank in range(ranks)]
    limit = 127 if wire.startswith("int8") else 32767
    scales = table_absmax(grads).max(axis=0) / np.float32(limit)
    merged = exchange(ranks, wire=wire).tables[0].begin(grads)()
    np.testing.assert_array_equal(to_dense(merged), integer_oracle(grads, scales, limit))
    assert merged.rows.tolist() == merge(grads).rows.tolist()


@pytest.mark.parametrize("wire", INTEGER_WIRES)
@given(ranks=st.integers(1, 5), seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_the_sum_is_off_by_half_a_step_a_rank(wire: str, ranks: int, seed: int) -> None:
    grads = [bounded(seed + rank) for rank in range(ranks)]
    limit = 127 if wire.startswith("int8") else 32767
    half = table_absmax(grads).max(axis=0).astype(np.float64) / limit / 2
    exact = np.sum([to_dense(grad).astype(np.float64) for grad in grads], axis=0)
    error = np.abs(to_dense(exchange(ranks, wire=wire).tables[0].begin(grads)()) - exact)
    assert (error <= ranks * half[:, None, None] + np.abs(exact) * 2.0**-22).all()


@pytest.mark.parametrize("width", ["int8", "int16"])
@pytest.mark.parametrize("scale_reduce", ["max", "mean"])
def test_the_container_changes_no_bit(width: str, scale_reduce: str) -> None:
    grads = [scaled(bounded(rank), 1.0 + 10 * rank) for rank in range(3)]
    plain, contained = (
        exchange(3, wire=wire, scale_reduce=scale_reduce).tables[0].begin(grads)() for wire in (width, f"{width}-fp32")
    )
    assert same_bits(plain, contained)


def test_eight_bits_do_not_wrap() -> None:
    """100 + 100 is -56 in 8 bits."""
    grads = [bounded(0)] * 4
    merged, single = (exchange(ranks, wire="int8").tables[0].begin(grads[:ranks])() for ranks in (4, 1))
    np.testing.assert_array_equal(to_dense(merged), 4 * to_dense(single))


def test_dense_equals_sparse_to_the_bit() -> None:
    grads = [sparse_input(rank, empty=rank == 1) for rank in range(3)]
    dense, sparse = (exchange(3, wire=wire).tables[0].begin(grads)() for wire in ("dense", "sparse"))
    np.testing.assert_array_equal(to_dense(dense), to_dense(sparse))
    assert dense.rows.tolist() == sparse.rows.tolist()


def test_dense_leaves_rows_out_whose_sum_is_zero() -> None:
    grad = bounded(0)
    merged = exchange(2, wire="dense").tables[0].begin([grad, scaled(grad, -1)])()
    assert merged.rows.numel() == 0


def test_dense_is_refused_for_large_tables() -> None:
    shape = GradientShape((TableShape(torch.tensor([0, 2**31]), 64),), 0)
    with pytest.raises(ConfigError, match=r"comm.wire dense .* 512.00 GiB"):
        open_exchange(ExchangeSettings(wire="dense"), SingleTransport(), 2, shape, merge)


@pytest.mark.parametrize("wire", WIRES)
def test_nobody_looked_anything_up(wire: str) -> None:
    merged = exchange(2, wire=wire).tables[0].begin([sparse_input(0, empty=True), sparse_input(1, empty=True)])()
    assert merged.rows.numel() == 0
    assert merged.table_ptr.tolist() == [0] * (NUM_TABLES + 1)


@pytest.mark.parametrize("wire", INTEGER_WIRES)
def test_mean_saturates_where_a_rank_is_larger(wire: str) -> None:
    grads = [bounded(0), scaled(bounded(0), 3)]
    limit = 127 if wire.startswith("int8") else 32767
    absmax = table_absmax(grads)
    scales = ((absmax[0].astype(np.float64) + absmax[1]) / 2).astype(np.float32) / np.float32(limit)
    merged = to_dense(exchange(2, wire=wire, scale_reduce="mean").tables[0].begin(grads)())
    np.testing.assert_array_equal(merged, integer_oracle(grads, scales, limit))
    largest = np.abs(merged).max(axis=(1, 2))
    assert (largest < absmax.sum(axis=0)).all(), "twice the mean at most"


def test_the_first_micro_batch_gives_the_scale() -> None:
    grads = [bounded(0), scaled(bounded(2), 5)]
    scales = table_absmax(grads)[0] / np.float32(127)
    merged = exchange(2, wire="int8", simulated_scale="first").tables[0].begin(grads)()
    np.testing.assert_array_equal(to_dense(merged), integer_oracle(grads, scales, 127))


@pytest.mark.parametrize("wire", INTEGER_WIRES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_refused(wire: str, value: float) -> None:
    broken = bounded(2)
    broken.values[broken.table_ptr[2], DIM - 1] = value
    with pytest.raises(TrainingError, match=r"table 2 .* on rank 1"):
        exchange(2, wire=wire).tables[0].begin([bounded(0), broken])()


def test_error_feedback_sends_later_what_did_not_fit() -> None:
    """What arrives lags by one unit of the scale at most; without feedback the error would grow."""
    steps_done, grad = 40, bounded(0)
    scale = table_absmax([grad]).max(axis=0) * (1 + 1 / 254) / 127  # a residual makes the largest value larger
    feedback = exchange(1, wire="int8", mlp_gradients="int8", error_feedback="all")
    arrived = sum(to_dense(feedback.tables[0].begin([grad])()).astype(np.float64) for _ in range(steps_done))
    left = np.abs(arrived - steps_done * to_dense(grad).astype(np.float64))
    assert (left <= scale[:, None, None]).all()


def test_a_row_that_is_not_looked_up_keeps_its_residual() -> None:
    feedback = exchange(1, wire="int8", mlp_gradients="int8", error_feedback="all")
    feedback.tables[0].begin([bounded(0)])()
    before = feedback.state()["feedback.tables"].clone()
    feedback.tables[0].begin([sparse_input(0, empty=True)])()
    assert torch.equal(feedback.state()["feedback.tables"], before)
    assert before.abs().sum() > 0


def test_residuals_of_large_tables_are_refused() -> None:
    shape = GradientShape((TableShape(torch.tensor([0, 10**8]), 64),), 0)
    chosen = ExchangeSettings(wire="int8", mlp_gradients="int8", error_feedback="all")
    with pytest.raises(ConfigError, match=r"error_feedback all .* 2 ranks"):
        open_exchange(chosen, SingleTransport(), 2, shape, merge)


@pytest.mark.parametrize("name", ["wire", "scale_reduce", "mlp_gradients", "error_feedback", "rounding"])
def test_what_does_not_exist_is_refused(name: str) -> None:
    chosen: dict[str, Any] = {name: "other"}
    with pytest.raises(ConfigError, match=f"comm.{name} 'other' does not exist"):
        ExchangeSettings(**chosen)


def test_rows_stay_sorted_within_their_tables() -> None:
    merged = exchange(3, wire="int8").tables[0].begin([bounded(rank) for rank in range(3)])()
    for first, last in pairwise(merged.table_ptr.tolist()):
        assert (merged.rows[first:last].diff() > 0).all()
