"""Contestants that train: one rank alone on the whole batch, and all ranks on their shares of it.

One rank works alone while the others wait: all the machine's memory bandwidth is its own.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import torch
from torch import Tensor

from dqrm_cpu.bench.arena import Arenas
from dqrm_cpu.bench.cases import Case, cap_tables
from dqrm_cpu.bench.contestant import Contestant
from dqrm_cpu.bench.exchange import STEP_ALONE, STEP_OVERLAPS, STEP_TABLE_BYTES, STEP_WIRES, step_name
from dqrm_cpu.bench.ours_step import OursStep
from dqrm_cpu.bench.pool import Work
from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.comm.transports.process_transport import ProcessTransport
from dqrm_cpu.data.batch import Batch


def step_case(case: Case) -> Case:
    """The tables cut so that those of every rank fit."""
    model = case.config.model
    rows = cap_tables(model.table_rows, model.embedding_dim, STEP_TABLE_BYTES)
    return replace(case, config=replace(case.config, model=replace(model, table_rows=rows)))


def step_contestants(case: Case, transports: Sequence[Transport]) -> list[Contestant]:
    """They share tables."""
    rank, size = transports[0].rank, transports[0].size
    arenas = Arenas(case)
    contestants: list[Contestant] = [
        _Alone(OursStep(STEP_ALONE, _about("one rank, one process"), case.config, arenas), rank)
    ]
    for transport, (wire, overlap) in product(transports, product(STEP_WIRES, STEP_OVERLAPS)):
        if overlap == "on" and (not isinstance(transport, ProcessTransport) or transport.overlap_obstacle()):
            continue
        about = _about(
            f"{size} ranks, each with its share of the same batch, comm.wire {wire}, comm.overlap {overlap}, over "
            f"{transport.name}"
        )
        config = replace(case.config, comm=replace(case.config.comm, wire=wire, overlap=overlap))
        step = OursStep(step_name(transport.name, wire, overlap), about, config, arenas, transport)
        contestants.append(_Share(step, rank, size))
    return contestants


def _about(who: str) -> str:
    return f"the training step (INT4, exact scales, SGD): {who}"


class _Alone:
    """Rank 0 trains, the others do nothing."""

    def __init__(self, step: OursStep, rank: int) -> None:
        self.name, self.about = step.name, step.about
        self._step, self._works = step, rank == 0

    def setup(self) -> None:
        if self._works:
            self._step.setup()

    def step(self, work: Work) -> Tensor:
        """The loss, on rank 0."""
        return self._step.step(work) if self._works else torch.empty(0)

    def teardown(self) -> None:
        if self._works:
            self._step.teardown()


class _Share:
    """Every rank trains on its share."""

    def __init__(self, step: OursStep, rank: int, size: int) -> None:
        self.name, self.about = step.name, step.about
        self._step, self._rank, self._size = step, rank, size

    def setup(self) -> None:
        self._step.setup()

    def step(self, work: Work) -> Tensor:
        """The loss of the whole batch."""
        share = work.batch.size // self._size
        part = slice(self._rank * share, (self._rank + 1) * share)
        batch = work.batch
        own = Batch(batch.dense[part], batch.ids[:, part].contiguous(), None, batch.label[part])
        return self._step.step(Work(own, work.long_ids))

    def teardown(self) -> None:
        self._step.teardown()
