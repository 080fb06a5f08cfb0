"""Contestants that train: one rank alone on the whole batch, and all ranks on their shares of it.

One rank works alone while the others wait: all the machine's memory bandwidth is its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product

import torch
from torch import Tensor

from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.comm.transports.process_transport import ProcessTransport
from dqrm_cpu.data.batch import Batch
from dqrm_cpu.lab.bench.exchange.exchange_benchmark import (
    STEP_ALONE,
    STEP_EXCHANGES,
    STEP_OVERLAPS,
    STEP_TABLE_BYTES,
    step_name,
)
from dqrm_cpu.lab.bench.harness.batch_pool import Pool, Work
from dqrm_cpu.lab.bench.harness.cases import Case, cap_tables
from dqrm_cpu.lab.bench.harness.contestant import Contestant
from dqrm_cpu.lab.bench.harness.runner import Group
from dqrm_cpu.lab.bench.harness.shared_tables import SharedTables
from dqrm_cpu.lab.bench.step.our_step import OurStep


def step_case(case: Case) -> Case:
    """Cuts the tables so that those of every rank fit."""
    model = case.config.model
    rows = cap_tables(model.table_rows, model.embedding_dim, STEP_TABLE_BYTES)
    return replace(case, config=replace(case.config, model=replace(model, table_rows=rows)))


def step_group(case: Case, transports: Sequence[Transport], pool: Pool) -> Group:
    """Makes contestants that share tables, but for those whose tables lie on the ranks; batches come from the pool."""
    rank, size = transports[0].rank, transports[0].size
    shared = SharedTables(case)
    alone = OurStep(STEP_ALONE, _about("one rank, one process"), case.config, shared)
    contestants: list[Contestant] = [_RankStep(alone, (lambda work: work) if rank == 0 else None, pool)]
    for transport, (wire, tables), overlap in product(transports, STEP_EXCHANGES, STEP_OVERLAPS):
        if overlap == "on" and (not isinstance(transport, ProcessTransport) or transport.overlap_obstacle()):
            continue
        about = _about(
            f"{size} ranks, each with its share of the same batch, comm.wire {wire}, comm.overlap {overlap}, "
            f"comm.tables {tables}, over {transport.name}"
        )
        config = replace(case.config, comm=replace(case.config.comm, wire=wire, overlap=overlap, tables=tables))
        step = OurStep(step_name(transport.name, wire, overlap, tables), about, config, shared, transport)
        contestants.append(_RankStep(step, partial(_share_of, rank, size), pool))
    return Group("step", contestants, STEP_ALONE)


def _about(who: str) -> str:
    return f"the training step (INT4, exact scales, SGD): {who}"


class _RankStep:
    """A step that this rank takes on its share of the batch, or does not take: `share` None.

    Like training it knows the batch that follows, and takes it unless another contestant's turn comes between.
    """

    def __init__(self, step: OurStep, share: Callable[[Work], Work] | None, pool: Pool) -> None:
        self.name, self.about = step.name, step.about
        self._step, self._share, self._pool = step, share, pool
        self._shares: dict[int, Work] = {}  # by the batch that they are of; a pool keeps its batches

    def setup(self) -> None:
        if self._share is not None:
            self._step.setup()

    def step(self, work: Work) -> Tensor:
        """Returns the loss of the whole batch."""
        if self._share is None:
            return torch.empty(0)
        return self._step.step(self._share_of(work), lambda: [self._share_of(self._pool.peek()).batch])

    def teardown(self) -> None:
        if self._share is not None:
            self._step.teardown()

    def _share_of(self, work: Work) -> Work:
        assert self._share is not None
        if id(work) not in self._shares:
            self._shares[id(work)] = self._share(work)
        return self._shares[id(work)]


def _share_of(rank: int, size: int, work: Work) -> Work:
    batch, share = work.batch, work.batch.size // size
    part = slice(rank * share, (rank + 1) * share)
    return Work(Batch(batch.dense[part], batch.ids[:, part].contiguous(), None, batch.label[part]), work.long_ids)
