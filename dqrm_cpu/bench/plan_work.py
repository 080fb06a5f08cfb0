"""What both ranks of `dqrm-cpu plan` do on this machine: profile, measure the way between them, take real steps.

mpirun -n 2 python -m dqrm_cpu.bench.plan_work TASK FILE
"""

import json
import statistics
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dqrm_cpu.bench.arena import Arenas
from dqrm_cpu.bench.cases import Case
from dqrm_cpu.bench.exchange_step import step_case
from dqrm_cpu.bench.ours_step import make_parts
from dqrm_cpu.bench.plan import BATCHES, PlanTask, plan_case
from dqrm_cpu.bench.plan_profile import WIRES, measure_profile
from dqrm_cpu.bench.pool import Pool, make_pool
from dqrm_cpu.comm.network import fitted
from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.comm.transports.selection import open_transport

_STEPS, _GATHERS = 14, 30
_SMALL_BYTES, _LARGE_BYTES = 64, 2 << 20


def run_task(task: PlanTask) -> dict[str, Any]:
    """Figures of this rank."""
    torch.set_num_threads(task.threads)
    with open_transport("auto") as transport:
        case = step_case(plan_case(task))
        pool = make_pool(case.config.model, case.batch_size, BATCHES, case.config.seed + transport.rank)
        transport.barrier()
        profile = measure_profile(case, pool)
        transport.barrier()
        gathers = [(float(size), _gather_s(transport, size)) for size in (_SMALL_BYTES, _LARGE_BYTES)]
        return {
            "rank": transport.rank,
            "transport": transport.name,
            "profile": asdict(profile),
            "network": fitted(*gathers)._asdict(),
            "step_s": {wire: _step_s(case, pool, transport, wire) for wire in WIRES},
        }


def _gather_s(transport: Transport, size: int) -> float:
    """Median seconds in which every rank has a message of this size of each."""
    payload, seconds = np.zeros(size, dtype=np.uint8), []
    for _ in range(_GATHERS):
        transport.barrier()
        start = time.perf_counter()
        transport.allgatherv(payload, [size] * transport.size)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _step_s(case: Case, pool: Pool, transport: Transport, wire: str) -> float:
    """Median seconds of a real step; one thing after the other, as the model has it."""
    config = replace(case.config, comm=replace(case.config.comm, wire=wire, overlap="off"))
    arenas, seconds = Arenas(case), []
    step = make_parts(config, arenas, arenas.kernels, transport).step
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
