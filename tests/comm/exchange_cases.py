"""Settings of exchanges, and what each rank has, for tests that compare real with simulated ranks."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from comm_oracle import DIM, NUM_TABLES, TABLE_ROWS, sparse_input
from dqrm_cpu.comm.exchange.gradient_exchange import GradientExchange, GradientShape, TableShape, open_exchange
from dqrm_cpu.comm.exchange.settings import ExchangeSettings
from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.config.schema import WIRES
from dqrm_cpu.kernels.select import select_kernels

NUM_PARAMETERS, NUM_SCALARS, STEPS = 5003, 2, 3

CASES = {
    **{wire: ExchangeSettings(wire=wire) for wire in WIRES},
    "mean": ExchangeSettings(wire="int8", mlp_gradients="int8", scale_reduce="mean"),
    "stochastic": ExchangeSettings(wire="int8", rounding="stochastic", seed=7),
    "stochastic-mlp": ExchangeSettings(mlp_gradients="int8", rounding="stochastic", error_feedback="mlp", seed=7),
    "bf16-mlp": ExchangeSettings(mlp_gradients="bf16"),
    "bf16-feedback": ExchangeSettings(mlp_gradients="bf16", error_feedback="mlp"),
    "int8-mlp": ExchangeSettings(mlp_gradients="int8"),
    "feedback": ExchangeSettings(wire="int8", mlp_gradients="int8", error_feedback="mlp"),
    "all-feedback": ExchangeSettings(wire="int8-fp32", mlp_gradients="int8", error_feedback="all"),
}


def flat(rank: int, step: int) -> Tensor:
    random = np.random.default_rng([rank, step])
    return torch.from_numpy(random.standard_normal(NUM_PARAMETERS + NUM_SCALARS).astype(np.float32))


def run_steps(case: str, transport: Transport, ranks: Sequence[int]) -> tuple[dict[str, np.ndarray], GradientExchange]:
    """What comes out of every step for the ranks of this process, and the state after the last. Rank 0 starts empty."""
    shape = GradientShape((TableShape(torch.arange(NUM_TABLES + 1) * TABLE_ROWS, DIM),), NUM_PARAMETERS)
    merge = select_kernels("numba", torch.device("cpu")).merge_sparse
    # Off: the test counts bytes, also those by which ranks agree on an overlap.
    made = open_exchange(replace(CASES[case], overlap="off"), transport, len(ranks), shape, merge)
    found: dict[str, np.ndarray] = {}
    for step in range(STEPS):
        transport.progress.step = step + 1
        local = [sparse_input(rank + 10 * step, empty=rank == 0 and step == 0) for rank in ranks]
        tables = made.tables[0].begin(local)()
        flats = [flat(rank, step) for rank in ranks]
        made.mlp.sum_(flats)
        found |= {f"{step}.{part}": tensor.numpy() for part, tensor in tables._asdict().items()}
        found[f"{step}.mlp"] = flats[0].numpy()
    made.gather_state()
    return found | {name: tensor.numpy() for name, tensor in made.state().items()}, made
