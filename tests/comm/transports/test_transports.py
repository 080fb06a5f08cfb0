"""Every operation of every transport in real worlds, against NumPy."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from comm_oracle import (
    DENSE_SIZES,
    dense_input,
    exchange_sparse,
    message_to,
    ordered_sum,
    payload,
    same_bits,
    sparse_input,
    to_dense,
)
from dqrm_cpu.comm.exchange.table_exchange import sum_over_ranks_
from dqrm_cpu.comm.transport import SingleTransport
from dqrm_cpu.kernels.types import SparseGrad
from launching import has_mpi, run_world

pytestmark = pytest.mark.mpi

WORKER = Path(__file__).parents[1] / "operations_worker.py"
WORLDS = [(name, ranks) for name in ("mpi", "gloo", "oneccl") for ranks in (1, 2, 4)]

Results = Sequence[dict[str, np.ndarray]]


@pytest.fixture(scope="session", params=WORLDS, ids=lambda world: f"{world[0]}-{world[1]}")
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What each rank of one world saved."""
    name, ranks = request.param
    if name != "gloo":
        assert has_mpi(), "these tests need the oneccl extra: pip install 'dqrm-cpu[oneccl]'"
    folder = tmp_path_factory.mktemp("world")
    run_world(name, [WORKER, name, folder], ranks, timeout_s=60).check()
    saved = [dict(np.load(folder / f"{rank}.npz")) for rank in range(ranks)]
    assert [tuple(rank["world"]) for rank in saved] == [(r, ranks) for r in range(ranks)]
    assert {str(rank["name"]) for rank in saved} == {name}
    return saved


@cache
def dense_sum(ranks: int, length: int, dtype: str) -> bytes:
    return ordered_sum([dense_input(rank, length, dtype) for rank in range(ranks)]).tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("length", DENSE_SIZES)
def test_allreduce_is_the_sum_in_rank_order_to_the_bit(results: Results, length: int, dtype: str) -> None:
    for rank in results:
        assert rank[f"allreduce.{dtype}.{length}"].tobytes() == dense_sum(len(results), length, dtype)


def test_allreduce_keeps_shape(results: Results) -> None:
    for rank in results:
        assert rank["allreduce.matrix"].shape == (2, 3)
        assert rank["allreduce.matrix"].tobytes() == dense_sum(len(results), 6, "float32")


def test_allgather_small_stacks_by_rank(results: Results) -> None:
    expected = [[[r, r + 1]] for r in range(len(results))]
    assert all(rank["allgather_small"].tolist() == expected for rank in results)


def test_bytes_sent_counts_what_goes_to_others(results: Results) -> None:
    two_int64 = 2 * 8
    assert all(int(rank["bytes_sent"]) == two_int64 * (len(results) - 1) for rank in results)


def test_allgatherv_brings_each_payload_at_its_length(results: Results) -> None:
    for rank in results:
        for sender in range(len(results)):
            assert rank[f"allgatherv.{sender}"].tobytes() == payload(sender, len(results)).tobytes()


def test_allgatherv_of_nothing(results: Results) -> None:
    assert all(rank["all_empty"].tolist() == [0] * len(results) for rank in results)


@pytest.mark.parametrize("case", ["some", "none"])
def test_alltoallv_brings_what_each_rank_has_for_this_one(results: Results, case: str) -> None:
    for receiver, rank in enumerate(results):
        for sender in range(len(results)):
            assert rank[f"alltoallv.{case}.{sender}"].tobytes() == message_to(case, sender, receiver).tobytes()
        others = [message_to(case, receiver, other).size for other in range(len(results)) if other != receiver]
        assert int(rank[f"alltoallv.{case}.bytes"]) == sum(others)


def test_broadcast_gives_the_value_of_the_root(results: Results) -> None:
    expected = {"from": len(results) - 1, "text": "\u00fc"}
    assert all(json.loads(str(rank["broadcast"])) == expected for rank in results)


def test_dense_exchange_equals_simulated_ranks_to_the_bit(results: Results) -> None:
    simulated = sum_over_ranks_(SingleTransport(), [dense_input(r, 301, "float32") for r in range(len(results))])
    assert all(rank["dense"].tobytes() == simulated.tobytes() for rank in results)


def gradients(case: str, ranks: int) -> list[SparseGrad]:
    return [sparse_input(r, case == "all_empty_grads" or (case == "one_empty" and r == 0)) for r in range(ranks)]


def merged(rank: dict[str, np.ndarray], case: str) -> SparseGrad:
    return SparseGrad(*(torch.from_numpy(rank[f"sparse.{case}.{part}"]) for part in SparseGrad._fields))


@pytest.mark.parametrize("case", ["all", "one_empty", "all_empty_grads"])
def test_sparse_exchange_equals_simulated_ranks_to_the_bit(results: Results, case: str) -> None:
    simulated = exchange_sparse(SingleTransport(), gradients(case, len(results)))
    assert all(same_bits(merged(rank, case), simulated) for rank in results)


@pytest.mark.parametrize("case", ["all", "one_empty", "all_empty_grads"])
def test_sparse_exchange_equals_the_dense_sum(results: Results, case: str) -> None:
    expected = ordered_sum([to_dense(grad) for grad in gradients(case, len(results))])
    for rank in results:
        np.testing.assert_array_equal(to_dense(merged(rank, case)), expected)
