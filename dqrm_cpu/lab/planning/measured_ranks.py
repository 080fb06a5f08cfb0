"""What the ranks of `dqrm-cpu plan` do on this machine: measure their costs and the way between them, take real steps.

mpirun -n 2 python -m dqrm_cpu.lab.planning.measured_ranks TASK FILE
"""

import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.comm.transports.selection import open_transport
from dqrm_cpu.lab.bench.exchange.rank_steps import step_case
from dqrm_cpu.lab.bench.harness.batch_pool import Pool, make_pool
from dqrm_cpu.lab.bench.harness.cases import Case
from dqrm_cpu.lab.bench.harness.shared_tables import SharedTables
from dqrm_cpu.lab.bench.step.our_step import build_sharded_step, build_step
from dqrm_cpu.lab.planning.network import fitted
from dqrm_cpu.lab.planning.prediction import BATCHES, SHARDED, PlanTask, plan_case
from dqrm_cpu.lab.planning.rank_costs import WIRES, measure_costs

_STEPS, _GATHERS, _ROUNDS = 14, 30, 3
_SMALL_BYTES, _LARGE_BYTES = 64, 2 << 20


def run_task(task: PlanTask) -> dict[str, Any]:
    """Returns the figures of this rank."""
    torch.set_num_threads(task.threads)
    with open_transport("auto") as transport:
        case = step_case(plan_case(task))
        pool = make_pool(case.config.model, case.batch_size, BATCHES, case.config.seed + transport.rank)
        rounds = [_round(case, pool, transport) for _ in range(_ROUNDS)]
        return {"rank": transport.rank, "transport": transport.name, **_medians(rounds)}


def _round(case: Case, pool: Pool, transport: Transport) -> dict[str, Any]:
    """Measures costs, the way between the ranks and real steps: close together, since the load of a machine changes."""
    transport.barrier()
    costs = measure_costs(case, pool)
    transport.barrier()
    gathers = [(float(size), _gather_s(transport, size)) for size in (_SMALL_BYTES, _LARGE_BYTES)]
    step_s = {wire: _step_s(case, pool, transport, wire) for wire in WIRES}
    step_s[SHARDED] = _step_s(case, pool, transport, "int8", "shard")
    return {"costs": asdict(costs), "network": fitted(*gathers, ranks=transport.size)._asdict(), "step_s": step_s}


def _medians(rounds: Sequence[Any]) -> Any:
    """Returns the median of each number in values of the same structure."""
    first = rounds[0]
    if isinstance(first, dict):
        return {key: _medians([of_round[key] for of_round in rounds]) for key in first}
    if isinstance(first, list | tuple):
        return [_medians(parts) for parts in zip(*rounds, strict=True)]
    return statistics.median_low(rounds)


def _gather_s(transport: Transport, size: int) -> float:
    """Returns the median seconds in which every rank has a message of this size of each."""
    payload, seconds = np.zeros(size, dtype=np.uint8), []
    for _ in range(_GATHERS):
        transport.barrier()
        start = time.perf_counter()
        transport.allgatherv(payload, [size] * transport.size)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _step_s(case: Case, pool: Pool, transport: Transport, wire: str, tables: str = "replicate") -> float:
    """Returns the median seconds of a real step; one thing after the other, as the model has it."""
    config = replace(case.config, comm=replace(case.config.comm, wire=wire, overlap="off", tables=tables))
    shared, seconds = SharedTables(case), []
    if tables == "shard":
        step = build_sharded_step(config, shared.kernels, transport).step
    else:
        step = build_step(config, shared, shared.kernels, transport).step
    for number in range(_STEPS):
        batch = pool.next().batch
        start = time.perf_counter()
        step(number, [batch], batch.size * transport.size, config.train.learning_rate, stop_requested=False)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[2:])


if __name__ == "__main__":
    figures = run_task(PlanTask(**json.loads(sys.argv[1])))
    if figures["rank"] == 0:
        Path(sys.argv[2]).write_text(json.dumps(figures))
