"""The training step with tables on several ranks: to the bit that of tables on every rank, over every wire."""

import functools
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dqrm_cpu.comm.exchange.settings import ExchangeSettings
from dqrm_cpu.comm.exchange.table_exchange import open_channel
from dqrm_cpu.comm.sharding.placement import place_tables, table_loads
from dqrm_cpu.comm.sharding.row_exchange import RowExchange
from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.comm.transports.selection import open_transport
from dqrm_cpu.data.batch import Batch, rank_shares
from dqrm_cpu.data.loader import Loader
from dqrm_cpu.data.source import open_data
from dqrm_cpu.kernels.select import select_kernels
from dqrm_cpu.model.dlrm import Dlrm
from dqrm_cpu.train.optimizers import select_optimizer
from dqrm_cpu.train.session import open_scales
from dqrm_cpu.train.shards import Shards
from dqrm_cpu.train.step import TrainingStep
from launching import run_world
from tiny import CPU, tiny_config

STEPS, BATCH = 5, 32
SMALL_BYTES = 24 * 40
"""Tables of up to so many bytes are replicated: two of the tiny model's three, or none."""

_QUANT: dict[str, Any] = {"scale_period": 1, "scale_finder": "track"}
CASES: dict[str, tuple[ExchangeSettings, dict[str, Any]]] = {
    **{
        f"{wire}, {optimizer}": (ExchangeSettings(wire=wire), {"optimizer": optimizer})
        for wire in ("sparse", "int8", "int8-fp32", "int16", "int16-fp32")
        for optimizer in ("sgd", "rowwise-adagrad")
    },
    "stochastic": (ExchangeSettings(wire="int8", rounding="stochastic"), {}),
    "overlap": (ExchangeSettings(wire="int8", overlap="on"), {}),
    "overlap, adagrad, bags": (
        ExchangeSettings(overlap="on"),
        {"optimizer": "rowwise-adagrad", "max_bag_size": 4},
    ),
    "overlap, one example": (ExchangeSettings(wire="int8", overlap="on"), {"batch_size": 1}),
    "mean": (ExchangeSettings(wire="int8", scale_reduce="mean"), {}),
    "mlp feedback": (ExchangeSettings(wire="int8", mlp_gradients="int8", error_feedback="mlp"), {}),
    "one example": (ExchangeSettings(wire="int8"), {"batch_size": 1}),
    **{f"{bits} bits": (ExchangeSettings(), {"bits": bits}) for bits in (2, 3, 8, 9, 16)},
    "fp32": (ExchangeSettings(), {"method": "none"}),
    "hawq": (ExchangeSettings(), {"method": "hawq"}),
    "wide": (ExchangeSettings(), {"step_width": (4.0,)}),
    "bags": (ExchangeSettings(wire="int8"), {"max_bag_size": 4}),
    "dcnv2": (
        ExchangeSettings(wire="int8"),
        {"optimizer": "rowwise-adagrad", "max_bag_size": 4, "model": {"interaction": "cross", "cross_rank": 5}},
    ),
    "int8 products": (ExchangeSettings(wire="int8"), {"precision": "int8"}),
    "bf16 rows": (ExchangeSettings(wire="int8"), {"master_rows": "bf16"}),
    "int8 rows": (ExchangeSettings(), {"master_rows": "int8", "optimizer": "rowwise-adagrad"}),
    "anew, by intervals": (
        ExchangeSettings(wire="int8"),
        {"optimizer": "rowwise-adagrad", "interval_decay": 0.01, "tables_last": 3},
    ),
    "int8 rows of fp32": (ExchangeSettings(wire="int8", overlap="on"), {"master_rows": "int8", "method": "none"}),
}


def run_steps(
    case: str, transport: Transport, simulated: int = 1, replicated_bytes: int | None = None
) -> tuple[dict[str, np.ndarray], list[tuple[int, int]]]:
    """Losses and weights after some steps, and the rows of each table that this process holds.

    `replicated_bytes`: those of the largest table that is on every rank; None: all are.
    """
    wires, chosen = CASES[case]
    optimizer, batch = chosen.get("optimizer", "sgd"), chosen.get("batch_size", BATCH)
    of_quant: dict[str, Any] = {name: chosen[name] for name in ("method", "step_width") if name in chosen}
    config = tiny_config(
        model=chosen.get("model"),
        train={
            "batch_size": batch,
            "optimizer": optimizer,
            "master_rows": chosen.get("master_rows", "fp32"),
            "interval_decay": chosen.get("interval_decay", 0.0),
            "precision": chosen.get("precision", "fp32"),
        },
        quant={**_QUANT, "embedding_bits": chosen.get("bits", 4), **of_quant},
        data={"max_bag_size": chosen.get("max_bag_size", 1)},
    )
    shards = None
    if replicated_bytes is not None:
        loads = table_loads(config)
        shards = Shards(place_tables(loads, transport.size, replicated_bytes=replicated_bytes), transport)
    model = Dlrm(config, select_kernels("numba", CPU), CPU, held=None if shards is None else shards.held)
    model.initialize_(config.seed)
    rows = None
    if shards is not None:
        channel = open_channel(transport, wires.overlap if simulated == 1 else "off", model.spans)
        rows = RowExchange(transport, shards.placement, model.tables, model.spans, channel)
    scales = open_scales(config.quant, model, shards)
    shares = rank_shares(transport.rank, transport.size, simulated)
    loader = Loader(open_data(config).train, batch, shares, CPU)
    micro = -(-batch // shares.total)
    if simulated > 1:
        wires = replace(wires, overlap="off")
    optimizer_of_model = select_optimizer(config.train, model)
    anew = chosen.get("tables_last", 0)
    step = TrainingStep(
        model, scales, optimizer_of_model, transport, simulated, micro, wires, rows=rows, tables_last=anew
    )
    batches = [loader.batches(i) for i in range(STEPS)]

    def upcoming(number: int) -> Callable[[], list[Batch]] | None:
        return {0: lambda: batches[1], 1: lambda: batches[4], 3: lambda: batches[4]}.get(number)

    losses = [
        # Some are asked for ahead, and one of these is not taken.
        step(*(i, batches[i], loader.global_size(i), 0.1), stop_requested=False, upcoming=upcoming(i)).loss
        for i in range(STEPS)
    ]
    tensors: Mapping[str, torch.Tensor] = {**model.weights(), **optimizer_of_model.state(), **scales.tensors()}
    held = [] if shards is None else [(rows.first_row, rows.num_rows) for rows in shards.held]
    arrays = {
        name: (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
        for name, tensor in tensors.items()
    }
    return {"losses": np.array(losses), **arrays}, held


@functools.cache
def replicated(case: str, ranks: int) -> dict[str, np.ndarray]:
    return run_steps(case, open_transport("auto", ranks), ranks)[0]


def assert_holds(
    found: Mapping[str, np.ndarray], held: list[tuple[int, int]], expected: Mapping[str, np.ndarray]
) -> None:
    """Rows of tables are those held of the whole; all else is equal."""
    first = np.cumsum([0, 40, 3])
    rows = np.concatenate([np.arange(a, a + n) + start for start, (a, n) in zip(first, held, strict=True)])
    for name, array in expected.items():
        whole = array[rows] if name in ("tables", "optimizer.rows", "optimizer.last") else array
        assert found[name].tobytes() == np.ascontiguousarray(whole).tobytes(), name


@pytest.mark.parametrize("small", [0, SMALL_BYTES])
@pytest.mark.parametrize("case", CASES)
def test_simulated_ranks_train_sharded_tables_as_replicated_ones(case: str, small: int) -> None:
    found, held = run_steps(case, open_transport("auto", 3), 3, small)
    assert held == [(0, 40), (0, 3), (0, 500)]
    assert_holds(found, held, replicated(case, 3))


WORLDS = [("mpi", 2), ("gloo", 2), ("oneccl", 2)]
WORLDS_TOO = [("mpi", 4), ("gloo", 4), ("oneccl", 4)]


@pytest.fixture(
    scope="session",
    params=[*WORLDS, *(pytest.param(world, marks=pytest.mark.long) for world in WORLDS_TOO)],
    ids=lambda world: f"{world[0]}-{world[1]}",
)
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    name, ranks = request.param
    folder = tmp_path_factory.mktemp("world")
    tests = Path(__file__).parent.parent
    script = f"import sys; sys.path[:0] = {[str(tests), str(tests / 'train')]!r}; "
    script += "from test_shards_step import worker; worker()"
    run_world(name, ["-c", script, name, folder], ranks, timeout_s=240).check()
    return folder, ranks


def worker() -> None:
    """One real rank: every case, with tables of its own and all cut or whole, to FOLDER/CASE.SMALL.RANK.npz."""
    torch.set_num_threads(1)
    with open_transport(sys.argv[1], timeout_s=120, overlap="on") as transport:
        for case in CASES:
            for small in (0, SMALL_BYTES):
                found, held = run_steps(case, transport, replicated_bytes=small)
                path = Path(sys.argv[2]) / f"{case}.{small}.{transport.rank}.npz"
                np.savez(path, held=np.array(held), **found)  # type: ignore[arg-type]


@pytest.mark.mpi
@pytest.mark.parametrize("case", CASES)
def test_real_ranks_train_sharded_tables_as_replicated_ones(real: tuple[Path, int], case: str) -> None:
    folder, ranks = real
    expected = replicated(case, ranks)
    for small in (0, SMALL_BYTES):
        covered = 0
        for rank in range(ranks):
            found = dict(np.load(folder / f"{case}.{small}.{rank}.npz"))
            held = [(int(first), int(count)) for first, count in found.pop("held")]
            assert_holds(found, held, expected)
            covered += held[2][1]
        assert covered == 500  # the largest table is on no rank twice
