"""What every rank of `bench exchange` does; rank 0 leaves the figures in a file.

mpirun -n 2 python -m dqrm_cpu.bench.exchange_work TASK FILE
"""

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from dqrm_cpu.bench.cases import Case
from dqrm_cpu.bench.contestant import Contestant, set_up
from dqrm_cpu.bench.exchange import MLP_FORMS, ExchangeTask, make_case
from dqrm_cpu.bench.exchange_mlp import OurMlp
from dqrm_cpu.bench.exchange_step import step_case, step_contestants
from dqrm_cpu.bench.exchange_tables import OurTables, TableMaterial, TorchTables
from dqrm_cpu.bench.pool import Work, make_pool
from dqrm_cpu.bench.timing import Plan, time_interleaved
from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.comm.transports.selection import open_transport
from dqrm_cpu.config.schema import WIRES
from dqrm_cpu.errors import CommError, DqrmError
from dqrm_cpu.kernels.select import select_kernels
from dqrm_cpu.model.dlrm import mlp_shapes

_BATCHES = 16
_COUNTED = 4
_TOLERANCE = 2e-2
"""Of the largest sum: two ranks' halves of an INT8 step, four sigma of gradients, and BF16's 8 bits lie below it."""


class Carrier(Contestant, Protocol):
    """A contestant that knows what it sent."""

    def bytes_sent(self, work: Work) -> Mapping[str, int]:
        """By one step, which it takes if that is how to know."""


@dataclass(frozen=True)
class Ranks:
    """The world, over every transport that takes part."""

    transports: Sequence[Transport]

    def slowest(self, seconds: float) -> float:
        """The largest of all ranks'."""
        # Over gloo, where it is there, a rank that has nothing to do waits asleep; MPI's would disturb the others.
        quiet = next((transport for transport in self.transports if transport.name == "gloo"), self.transports[0])
        return float(quiet.allgather_small(np.array([seconds])).max())


def run_task(task: ExchangeTask) -> dict[str, Any]:
    """The figures, the same on every rank."""
    torch.set_num_threads(task.threads)
    with ExitStack() as stack:
        transports = [stack.enter_context(open_transport(name)) for name in task.transports]
        if transports[0].size < 2:
            raise CommError("bench exchange measures what happens between ranks, and was started as one")
        case, ranks = make_case(task), Ranks(transports)
        plan = Plan(task.rounds, task.turn_s)
        return {
            "rank": transports[0].rank,
            "ranks": transports[0].size,
            "transports": {transport.name: transport.reason for transport in transports},
            "groups": {
                "tables": _carried(_tables(case, transports), case, ranks, plan),
                "mlp": _carried(_mlps(case, transports), case, ranks, plan),
                "step": _stepped(case, ranks, plan),
            },
        }


def _tables(case: Case, transports: Sequence[Transport]) -> list[Carrier]:
    kernels = select_kernels("auto", torch.device("cpu"))
    material = TableMaterial(case.config.model, case.batch_size, transports[0].rank, kernels)
    ours = [OurTables(material, transport, wire) for transport in transports for wire in WIRES]
    return [*ours, *(TorchTables(material, transports[0].size, fused) for fused in (False, True))]


def _mlps(case: Case, transports: Sequence[Transport]) -> list[Carrier]:
    size = mlp_shapes(case.config).num_parameters
    return [OurMlp(transport, name, size) for transport in transports for name in MLP_FORMS]


def _carried(contestants: Sequence[Carrier], case: Case, ranks: Ranks, plan: Plan) -> dict[str, Any]:
    rank = ranks.transports[0].rank
    pool = make_pool(case.config.model, case.batch_size, _BATCHES, case.config.seed + rank)
    present, absent = set_up(contestants)
    works = [pool.next() for _ in range(_COUNTED)]
    sent = {contestant.name: _mean_sent(contestant, works) for contestant in present}
    _require_same(present, works[0])
    timings = time_interleaved(present, pool, plan, lambda done: None, ranks.slowest)
    found = {}
    for contestant in present:
        timing = timings[contestant.name]
        found[contestant.name] = {
            "about": contestant.about,
            "samples_s": list(timing.samples),
            "steps_per_turn": timing.steps_per_turn,
            "bytes_per_step": sent[contestant.name],
            "phases_s": _phases(contestant),
        }
        contestant.teardown()
    return {"contestants": found, "absent": absent}


def _stepped(case: Case, ranks: Ranks, plan: Plan) -> dict[str, Any]:
    case = step_case(case)
    pool = make_pool(case.config.model, case.batch_size, _BATCHES, case.config.seed)
    contestants = step_contestants(case, ranks.transports)
    for contestant in contestants:
        contestant.setup()
    timings = time_interleaved(contestants, pool, plan, lambda done: None, ranks.slowest)
    return {
        "contestants": {
            contestant.name: {
                "about": contestant.about,
                "samples_s": list(timings[contestant.name].samples),
                "steps_per_turn": timings[contestant.name].steps_per_turn,
            }
            for contestant in contestants
        },
        "absent": {},
    }


def _mean_sent(contestant: Carrier, works: Sequence[Work]) -> dict[str, float]:
    total: dict[str, float] = {}
    for work in works:
        for part, count in contestant.bytes_sent(work).items():
            total[part] = total.get(part, 0.0) + count / len(works)
    return total


def _require_same(contestants: Sequence[Carrier], work: Work) -> None:
    """All carry the same gradients: figures of different sums would mean nothing."""
    wanted = contestants[0].step(work).clone()
    limit = _TOLERANCE * float(wanted.abs().max())
    for contestant in contestants[1:]:
        found = contestant.step(work)
        if found.shape != wanted.shape or not float((found - wanted).abs().max()) <= limit:
            raise DqrmError(f"{contestant.name} came to another sum than {contestants[0].name}")


def _phases(contestant: Carrier) -> dict[str, float]:
    """The median of each phase on this rank, by name; of contestants that are made of phases."""
    if not isinstance(contestant, OurTables):
        return {}
    phases = contestant.spans.summary().phases
    return {phase.key: summary.median_ms * 1e-3 for phase, summary in phases.items()}


if __name__ == "__main__":
    plain = json.loads(sys.argv[1])
    figures = run_task(ExchangeTask(**{**plain, "transports": tuple(plain["transports"])}))
    if figures["rank"] == 0:
        Path(sys.argv[2]).write_text(json.dumps(figures))
