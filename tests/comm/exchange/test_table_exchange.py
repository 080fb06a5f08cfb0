"""Exchanges within one process; real worlds are in test_transports."""

import numpy as np
import pytest
import torch

from comm_oracle import dense_input, exchange_sparse, merge, ordered_sum, same_bits, sparse_input
from dqrm_cpu.comm.exchange.table_exchange import sum_over_ranks_
from dqrm_cpu.comm.transport import SingleTransport, sum_in_order


def test_sparse_merges_in_rank_order() -> None:
    grads = [sparse_input(rank) for rank in range(3)]
    assert same_bits(exchange_sparse(SingleTransport(), grads), merge(grads))


def test_a_result_outlives_the_next_exchange() -> None:
    transport = SingleTransport()
    first = exchange_sparse(transport, [sparse_input(0), sparse_input(1)])
    exchange_sparse(transport, [sparse_input(2), sparse_input(3)])
    assert same_bits(first, merge([sparse_input(0), sparse_input(1)]))


def test_dense_sums_into_the_first() -> None:
    parts = [dense_input(rank, 100, "float32") for rank in range(3)]
    expected = ordered_sum(parts)
    total = sum_over_ranks_(SingleTransport(), parts)
    assert total is parts[0]
    assert total.tobytes() == expected.tobytes()


def test_a_sum_of_negative_zeros_stays_negative() -> None:
    zeros = np.full((3, 2), -0.0, dtype=np.float32)
    out = np.empty(2, dtype=np.float32)
    sum_in_order(zeros, out)
    assert np.signbit(out).all()


@pytest.mark.parametrize("exchange", [sum_over_ranks_, exchange_sparse])
def test_no_gradient_is_refused(exchange: object) -> None:
    with pytest.raises(ValueError, match="0 gradients"):
        exchange(SingleTransport(), [])  # type: ignore[operator]


@pytest.mark.parametrize(
    "array",
    [np.zeros(4, np.int32), np.zeros((4, 4), np.float32)[:, 1], np.broadcast_to(np.float32(0), 4)],
    ids=["integers", "strided", "read-only"],
)
def test_allreduce_refuses_what_it_cannot_change_in_place(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match="contiguous, writable"):
        SingleTransport().allreduce_(array)


def test_torch_memory_is_summed_in_place() -> None:
    flat = torch.ones(3)
    sum_over_ranks_(SingleTransport(), [flat.numpy(), np.full(3, 2, np.float32)])
    assert flat.tolist() == [3, 3, 3]
