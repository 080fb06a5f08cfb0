"""What `dqrm-cpu plan` measures of one rank: its computation, and the local phases of an exchange."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from dqrm_cpu.comm.exchange.gradient_exchange import GradientShape, TableShape, open_exchange
from dqrm_cpu.comm.exchange.settings import ExchangeSettings
from dqrm_cpu.comm.transport import SingleTransport
from dqrm_cpu.kernels.interface import Kernels
from dqrm_cpu.kernels.types import SparseGrad
from dqrm_cpu.lab.bench.harness.batch_pool import Pool
from dqrm_cpu.lab.bench.harness.cases import Case
from dqrm_cpu.lab.bench.harness.shared_tables import SharedTables
from dqrm_cpu.lab.bench.step.our_step import StepParts, build_sharded_step, build_step
from dqrm_cpu.timing.phases import STEP_PHASES, Phase
from dqrm_cpu.timing.spans import Spans

WIRES = ("sparse", "int8-fp32", "int8")
"""The wires that a plan compares."""

MERGED = (2, 8)
"""Numbers of ranks whose messages are merged here; other numbers lie on the line through both."""

_STEPS, _MERGES = 12, 5
_GRADIENT_SIZE = 1e-3
_NO_LEARNING = 0.0  # the same work, and the same weights as before
_AFTER_BACKWARD = (
    *(Phase.COALESCE, Phase.QUANTIZE_GRADIENTS, Phase.WIRE, Phase.MERGE, Phase.MLP_EXCHANGE),
    *(Phase.EMBEDDING_UPDATE, Phase.DENSE_UPDATE),
)


@dataclass(frozen=True)
class WireCosts:
    """Costs of one wire; seconds, medians."""

    message_bytes: float  # of one rank: rows, values, padding
    quantize_s: float
    merge_s: tuple[float, float]  # for each of MERGED
    update_s: tuple[float, float]


@dataclass(frozen=True)
class RankCosts:
    """Costs of a step on one rank with this many threads; seconds, medians."""

    threads: int
    batch: int
    tables: int
    num_parameters: int  # of both MLPs
    compute_s: float  # batch, forward, backward
    coalesce_s: float
    dense_update_s: float
    wires: dict[str, WireCosts]
    dim: int
    sharded_s: float  # a whole step with sharded tables and INT8 gradients, but for the network


def measure_costs(case: Case, pool: Pool) -> RankCosts:
    """Measures one rank in some ten seconds, with the threads that are set."""
    shared = SharedTables(case)
    # A single rank that rounds its gradient goes through every phase of an exchange but for the wire.
    config = replace(case.config, comm=replace(case.config.comm, wire="int8"))
    parts = build_step(config, shared, shared.kernels, SingleTransport())
    model, spans, lr = parts.model, parts.model.spans, config.train.learning_rate
    for number in range(_STEPS):
        batch = pool.next().batch
        spans.begin_step()
        parts.step(number, [batch], batch.size, lr, stop_requested=False)
        spans.step_done()
    phases = spans.summary().phases
    compute_ms = sum(
        phases[phase].median_ms for phase in STEP_PHASES if phase in phases and phase not in _AFTER_BACKWARD
    )
    pooled = torch.randn(case.batch_size, 1 + model.tables.num_tables, model.tables.dim).mul_(_GRADIENT_SIZE)
    bags = [model.bags(pool.next().batch) for _ in range(max(MERGED))]
    grads = [model.kernels.coalesce(model.tables, bag, pooled) for (bag,) in bags]
    sharded_s = _sharded_s(case, pool, shared.kernels)
    return RankCosts(
        threads=torch.get_num_threads(),
        batch=case.batch_size,
        tables=len(case.config.model.table_rows),
        num_parameters=model.shapes.num_parameters,
        compute_s=compute_ms * 1e-3,
        coalesce_s=phases[Phase.COALESCE].median_ms * 1e-3,
        dense_update_s=phases[Phase.DENSE_UPDATE].median_ms * 1e-3,
        wires={wire: _wire_costs(wire, parts, grads) for wire in WIRES},
        dim=model.tables.dim,
        sharded_s=sharded_s,
    )


def _sharded_s(case: Case, pool: Pool, kernels: Kernels) -> float:
    """Returns the seconds of a step whose rows are all asked of this rank, which needs no network.

    With N ranks it asks as many rows of others as it answers, and sums as many gradients as it sends: the same work.
    """
    config = replace(case.config, comm=replace(case.config.comm, wire="int8", tables="shard", overlap="off"))
    parts, seconds = build_sharded_step(config, kernels, SingleTransport()), []
    for number in range(_STEPS):
        batch = pool.next().batch
        start = time.perf_counter()
        parts.step(number, [batch], batch.size, config.train.learning_rate, stop_requested=False)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[2:])


def _wire_costs(wire: str, parts: StepParts, grads: Sequence[SparseGrad]) -> WireCosts:
    few, many = (_merged(wire, parts, grads[:ranks]) for ranks in MERGED)
    (quantize_s, merge_few_s, update_few_s), (_, merge_many_s, update_many_s) = few, many
    rows, dim = grads[0].values.shape
    value_bytes = {"sparse": 4, "int8-fp32": 4, "int8": 1}[wire]
    return WireCosts(
        rows * (4 + dim * value_bytes), quantize_s, (merge_few_s, merge_many_s), (update_few_s, update_many_s)
    )


def _merged(wire: str, parts: StepParts, grads: Sequence[SparseGrad]) -> tuple[float, float, float]:
    """Returns seconds to quantize one gradient, to merge them all, and to apply the sum."""
    spans, model = Spans(), parts.model
    shape = GradientShape((TableShape(model.tables.row_offset, model.tables.dim),), num_parameters=1)
    merge = model.kernels.merge_sparse
    exchange = open_exchange(ExchangeSettings(wire=wire), SingleTransport(), len(grads), shape, merge, spans)
    for _ in range(1 + _MERGES):
        spans.begin_step()
        merged = exchange.begin_tables([[grad] for grad in grads])()
        with spans.embedding_update:
            parts.optimizer.apply_tables(merged, _NO_LEARNING, parts.scales.trackers, 0)
        spans.step_done()
    phases = spans.summary().phases
    quantize, merging, update = (phases[p] for p in (Phase.QUANTIZE_GRADIENTS, Phase.MERGE, Phase.EMBEDDING_UPDATE))
    return quantize.median_ms * 1e-3 / len(grads), merging.median_ms * 1e-3, update.median_ms * 1e-3
