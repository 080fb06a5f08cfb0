"""Real ranks against simulated ones, to the bit, for every wire; and bytes as they went over it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from comm_oracle import DIM, NUM_TABLES, sparse_input
from dqrm_cpu.comm.transport import SingleTransport
from exchange_cases import CASES, NUM_PARAMETERS, NUM_SCALARS, STEPS, run_steps
from launching import run_world

pytestmark = pytest.mark.mpi

WORKER = Path(__file__).parents[1] / "exchange_worker.py"
WORLDS = [("mpi", 2), ("gloo", 2), ("oneccl", 2), ("mpi", 3)]

Saved = tuple[int, Path]


@pytest.fixture(scope="session", params=WORLDS, ids=lambda world: f"{world[0]}-{world[1]}")
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Number of ranks of one world, and the folder in which each left its results."""
    name, ranks = request.param
    folder = tmp_path_factory.mktemp("world")
    run_world(name, [WORKER, name, folder], ranks, timeout_s=120).check()
    return ranks, folder


def results(saved: Saved, case: str) -> Sequence[dict[str, np.ndarray]]:
    ranks, folder = saved
    return [dict(np.load(folder / f"{case}.{rank}.npz")) for rank in range(ranks)]


@pytest.mark.parametrize("case", CASES)
def test_real_ranks_equal_simulated_ranks_to_the_bit(saved: Saved, case: str) -> None:
    expected, _ = run_steps(case, SingleTransport(), range(saved[0]))
    for rank in results(saved, case):
        assert {*rank} == {*expected, "sent", "counted"}
        for name, array in expected.items():
            assert rank[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("case", CASES)
def test_parts_add_up_to_what_the_transport_counted(saved: Saved, case: str) -> None:
    for rank in results(saved, case):
        assert int(rank["sent"].sum()) == int(rank["counted"])


@pytest.mark.parametrize(("case", "value_bytes"), [("sparse", 4), ("int8", 1), ("int8-fp32", 4), ("int16", 2)])
def test_bytes_by_part(saved: Saved, case: str, value_bytes: int) -> None:
    others = saved[0] - 1
    for number, rank in enumerate(results(saved, case)):
        empty_first = number == 0
        grads = [sparse_input(number + 10 * step, empty_first and step == 0) for step in range(STEPS)]
        rows = sum(grad.rows.numel() for grad in grads)
        indices, values, scales, mlp = rank["sent"].tolist()
        assert indices == rows * 4 * others
        assert values == rows * DIM * value_bytes * others
        words = 1 if case == "sparse" else 2
        assert 0 <= scales - STEPS * words * NUM_TABLES * 4 * others < STEPS * 2 * 16 * others, (
            "counts, scales, padding"
        )
        assert mlp > 0


def test_int8_mlps_send_a_quarter(saved: Saved) -> None:
    """An FP32 part goes out and a sum comes back, 4 bytes each; codes take 1, and a scale comes with each 1024."""
    full, short = (results(saved, case)[0]["sent"][3] for case in ("sparse", "int8-mlp"))
    assert full >= 2 * 4 * (NUM_PARAMETERS + NUM_SCALARS) // saved[0] * STEPS * (saved[0] - 1)
    assert short < full / 2.5, "5003 values in whole blocks of 1024 for each rank"
