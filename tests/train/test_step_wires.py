"""The training step over every wire: what each does to losses and weights; simulated against real ranks."""

import functools
import itertools
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dqrm_cpu.comm.exchange.settings import ExchangeSettings
from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.comm.transports.selection import open_transport
from dqrm_cpu.config.schema import WIRES
from dqrm_cpu.data.batch import rank_shares
from dqrm_cpu.data.loader import Loader
from dqrm_cpu.data.source import open_data
from dqrm_cpu.kernels.select import select_kernels
from dqrm_cpu.model.dlrm import Dlrm
from dqrm_cpu.quant.scale import TableScales
from dqrm_cpu.train.optimizers import select_optimizer
from dqrm_cpu.train.step import TrainingStep
from launching import run_world
from tiny import CPU, tiny_config

STEPS, RANKS = 5, 2
OVERLAPS = ("on", "off")

CASES = {
    **{wire: ExchangeSettings(wire=wire) for wire in WIRES},
    "feedback": ExchangeSettings(wire="int8", mlp_gradients="int8", error_feedback="mlp"),
    "all-feedback": ExchangeSettings(wire="int8", mlp_gradients="int8", error_feedback="all"),
    "bf16": ExchangeSettings(mlp_gradients="bf16"),
    "activations": ExchangeSettings(wire="int8", mlp_gradients="int8"),
    "rounding": ExchangeSettings(),
}
QUANT: dict[str, dict[str, object]] = {
    "activations": {"activation_bits": 4},
    "rounding": {"rounding": "stochastic", "mlp_rounding": "stochastic"},
}
"""Of the cases that have settings of their own."""


def run_steps(
    wires: ExchangeSettings,
    simulated: int = 1,
    kernels: str = "numba",
    batch_size: int = 32,
    transport: Transport | None = None,
    quant: Mapping[str, object] | None = None,
) -> dict[str, Any]:
    """Losses and weights after some steps of the tiny model, on real or simulated ranks."""
    config = replace(tiny_config(train={"batch_size": batch_size}, quant=quant), kernels=kernels)
    transport = open_transport("auto", simulated) if transport is None else transport
    model = Dlrm(config, select_kernels(kernels, CPU), CPU)
    model.initialize_(config.seed)
    scales = TableScales(config.quant, model.kernels, model.groups)
    shares = rank_shares(transport.rank, transport.size, simulated)
    loader = Loader(open_data(config).train, config.train.batch_size, shares, CPU)
    micro = -(-config.train.batch_size // shares.total)
    step = TrainingStep(model, scales, select_optimizer(config.train, model), transport, simulated, micro, wires)
    losses = [step(i, loader.batches(i), loader.global_size(i), 0.1, stop_requested=False).loss for i in range(STEPS)]
    weights = {name: tensor.numpy() for name, tensor in model.weights().items()}
    return {"losses": np.array(losses), **weights}


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for name, array in expected.items():
        assert found[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("kernels", ["numba", "torch"])
@pytest.mark.parametrize("width", ["int8", "int16"])
def test_the_container_changes_no_bit(width: str, kernels: str) -> None:
    plain, contained = (run_steps(ExchangeSettings(wire=wire), 3, kernels) for wire in (width, f"{width}-fp32"))
    assert_same(contained, plain)


def test_dense_trains_as_sparse_does() -> None:
    assert_same(run_steps(ExchangeSettings(wire="dense"), 3), run_steps(ExchangeSettings(wire="sparse"), 3))


@pytest.mark.parametrize("case", ["int8", "int16", "feedback", "all-feedback", "bf16"])
def test_what_rounds_still_follows_the_exact_wire(case: str) -> None:
    """A step of at most 2 / 127 of the largest gradient leaves the loss of few steps where it was, but for a little."""
    exact, rounded = run_steps(ExchangeSettings(), 2), run_steps(CASES[case], 2)
    assert not np.array_equal(rounded["losses"], exact["losses"])
    np.testing.assert_allclose(rounded["losses"], exact["losses"], rtol=5e-3)


def test_a_rank_alone_rounds_too() -> None:
    exact, rounded = (run_steps(ExchangeSettings(wire=wire)) for wire in ("sparse", "int8"))
    assert not np.array_equal(rounded["tables"], exact["tables"])


def test_the_first_scale_differs_from_that_of_all() -> None:
    wires = ExchangeSettings(wire="int8")
    together, first = run_steps(wires, 2), run_steps(replace(wires, simulated_scale="first"), 2)
    assert not np.array_equal(together["tables"], first["tables"])


@pytest.mark.parametrize("case", ["sparse", "int8", "feedback", "all-feedback"])
def test_ranks_without_examples(case: str) -> None:
    """A batch of 3 leaves 2 of 5 ranks without a lookup: they change no scale and no sum."""
    assert_same(run_steps(CASES[case], 5, batch_size=3), run_steps(CASES[case], 3, batch_size=3))


@pytest.fixture(scope="session", params=["mpi", "gloo", "oneccl"])
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    tests = Path(__file__).parent.parent
    paths = [str(tests), str(tests / "train")]
    script = f"import sys; sys.path[:0] = {paths!r}; from test_step_wires import worker; worker()"
    run_world(request.param, ["-c", script, request.param, folder], RANKS, timeout_s=120).check()
    return folder


def worker() -> None:
    """One real rank: every case, results to FOLDER/CASE.RANK.npz."""
    torch.set_num_threads(1)
    with open_transport(sys.argv[1], timeout_s=60, overlap="on") as transport:
        for (case, wires), overlap in itertools.product(CASES.items(), OVERLAPS):
            found = run_steps(replace(wires, overlap=overlap), transport=transport, quant=QUANT.get(case))
            np.savez(Path(sys.argv[2]) / f"{case}.{overlap}.{transport.rank}.npz", **found)


@functools.cache
def simulated_ranks(case: str) -> dict[str, np.ndarray]:
    return run_steps(CASES[case], simulated=RANKS, quant=QUANT.get(case))


@pytest.mark.mpi
@pytest.mark.parametrize("case", CASES)
def test_real_ranks_train_as_simulated_ranks_to_the_bit(real: Path, case: str) -> None:
    """Whether or not tables travel while the backward runs."""
    expected = simulated_ranks(case)
    for overlap, rank in itertools.product(OVERLAPS, range(RANKS)):
        assert_same(dict(np.load(real / f"{case}.{overlap}.{rank}.npz")), expected)
