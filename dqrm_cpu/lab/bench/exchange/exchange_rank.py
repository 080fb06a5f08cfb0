"""What every rank of `bench exchange` does; rank 0 leaves the figures in a file.

mpirun -n 2 python -m dqrm_cpu.lab.bench.exchange.exchange_rank TASK FILE
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

from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.comm.transports.selection import open_transport
from dqrm_cpu.config.schema import WIRES
from dqrm_cpu.errors import CommError, DqrmError
from dqrm_cpu.kernels.select import select_kernels
from dqrm_cpu.lab.bench.exchange.exchange_benchmark import MLP_FORMS, ExchangeTask, baseline, make_case
from dqrm_cpu.lab.bench.exchange.gradient_contestants import OurMlp, OurTables, TableGradients, TorchTables
from dqrm_cpu.lab.bench.exchange.rank_steps import step_case, step_group
from dqrm_cpu.lab.bench.harness.batch_pool import Work, make_pool
from dqrm_cpu.lab.bench.harness.cases import Case
from dqrm_cpu.lab.bench.harness.contestant import Contestant, set_up
from dqrm_cpu.lab.bench.harness.document import group_document
from dqrm_cpu.lab.bench.harness.result import ContestantResult, GroupResult
from dqrm_cpu.lab.bench.harness.runner import TurnPlan, run_group, time_interleaved
from dqrm_cpu.model.shapes import mlp_shapes

_BATCHES = 16
_COUNTED = 4
_TOLERANCE = 2e-2
"""Of the largest sum: two ranks' halves of an INT8 step, four sigma of gradients, and BF16's 8 bits lie below it."""


class GradientContestant(Contestant, Protocol):
    """A contestant that knows what it sent."""

    def bytes_sent(self, work: Work) -> Mapping[str, int]:
        """Returns the bytes of one step, which it takes if that is how to know."""


@dataclass(frozen=True)
class Ranks:
    """All ranks, over every transport that takes part."""

    transports: Sequence[Transport]

    def slowest(self, seconds: float) -> float:
        """Returns the largest of all ranks' seconds."""
        # Over gloo, where it is there, a rank that has nothing to do waits asleep; MPI's would disturb the others.
        quiet = next((transport for transport in self.transports if transport.name == "gloo"), self.transports[0])
        return float(quiet.allgather_small(np.array([seconds])).max())


def run_task(task: ExchangeTask) -> dict[str, Any]:
    """Returns the figures, the same on every rank."""
    torch.set_num_threads(task.threads)
    with ExitStack() as stack:
        transports = [stack.enter_context(open_transport(name)) for name in task.transports]
        rank, size = transports[0].rank, transports[0].size
        if size < 2:
            raise CommError("bench exchange measures what happens between ranks, and was started as one")
        case, ranks, plan = make_case(task), Ranks(transports), TurnPlan(task.rounds, task.turn_s)
        kernels = select_kernels("auto", torch.device("cpu"))
        gradients = TableGradients(case.config.model, case.batch_size, rank, kernels)
        tables: list[GradientContestant] = [
            *(OurTables(gradients, transport, wire) for transport in transports for wire in WIRES),
            *(TorchTables(gradients, size, fused) for fused in (False, True)),
        ]
        num_parameters = mlp_shapes(case.config).num_parameters
        mlps = [OurMlp(transport, name, num_parameters) for transport in transports for name in MLP_FORMS]
        groups = (
            _run_gradients("tables", tables, case, ranks, plan),
            _run_gradients("mlp", mlps, case, ranks, plan),
            _run_steps(step_case(case), ranks, plan),
        )
        return {
            "rank": rank,
            "ranks": size,
            "transports": {transport.name: transport.reason for transport in transports},
            "groups": {group.name: group_document(group) for group in groups},
        }


def _run_gradients(
    name: str, contestants: Sequence[GradientContestant], case: Case, ranks: Ranks, plan: TurnPlan
) -> GroupResult:
    rank = ranks.transports[0].rank
    pool = make_pool(case.config.model, case.batch_size, _BATCHES, case.config.seed + rank)
    present, absent = set_up(contestants)
    works = [pool.next() for _ in range(_COUNTED)]
    sent = {contestant.name: _mean_sent(contestant, works) for contestant in present}
    _require_same(present, works[0])
    timings = time_interleaved(present, pool, plan, agree=ranks.slowest)
    entries = []
    for contestant in present:
        entries.append(
            ContestantResult(
                contestant.name,
                contestant.about,
                timings[contestant.name],
                bytes_per_step=sent[contestant.name],
                phases_s=_phases(contestant),
            )
        )
        contestant.teardown()
    names = tuple(transport.name for transport in ranks.transports)
    return GroupResult(name, baseline(name, names), tuple(entries), absent)


def _run_steps(case: Case, ranks: Ranks, plan: TurnPlan) -> GroupResult:
    pool = make_pool(case.config.model, case.batch_size, _BATCHES, case.config.seed)
    return run_group(step_group(case, ranks.transports, pool), pool, plan, agree=ranks.slowest)


def _mean_sent(contestant: GradientContestant, works: Sequence[Work]) -> dict[str, float]:
    total: dict[str, float] = {}
    for work in works:
        for part, count in contestant.bytes_sent(work).items():
            total[part] = total.get(part, 0.0) + count / len(works)
    return total


def _require_same(contestants: Sequence[GradientContestant], work: Work) -> None:
    """Raises unless all carry the same gradients: figures of different sums would mean nothing."""
    wanted = contestants[0].step(work).clone()
    limit = _TOLERANCE * float(wanted.abs().max())
    for contestant in contestants[1:]:
        summed = contestant.step(work)
        if summed.shape != wanted.shape or not float((summed - wanted).abs().max()) <= limit:
            raise DqrmError(f"{contestant.name} came to another sum than {contestants[0].name}")


def _phases(contestant: GradientContestant) -> dict[str, float]:
    """Returns the median of each phase on this rank, by name; of contestants that are made of phases."""
    if not isinstance(contestant, OurTables):
        return {}
    phases = contestant.spans.summary().phases
    return {phase.key: summary.median_ms * 1e-3 for phase, summary in phases.items()}


if __name__ == "__main__":
    plain = json.loads(sys.argv[1])
    figures = run_task(ExchangeTask(**{**plain, "transports": tuple(plain["transports"])}))
    if figures["rank"] == 0:
        Path(sys.argv[2]).write_text(json.dumps(figures))
