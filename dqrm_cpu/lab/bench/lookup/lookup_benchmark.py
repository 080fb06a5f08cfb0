"""Bags of rows of one INT4 table, pooled to FP32: ours, PyTorch's and FBGEMM's operators for it, and tables in FP32."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from dqrm_cpu.base.memory import format_size
from dqrm_cpu.data.batch import Batch
from dqrm_cpu.errors import DeviceError
from dqrm_cpu.kernels.interface import Kernels
from dqrm_cpu.kernels.packed_bags import PackedBags
from dqrm_cpu.kernels.select import select_kernels
from dqrm_cpu.kernels.types import UNQUANTIZED, Bags, Tables
from dqrm_cpu.lab.bench.harness.batch_pool import Pool, Work
from dqrm_cpu.lab.bench.harness.benchmark import Benchmark, RunEnvironment
from dqrm_cpu.lab.bench.harness.contestant import Contestant, Prepared, Step
from dqrm_cpu.lab.bench.harness.result import CaseResult, Ratio
from dqrm_cpu.lab.bench.harness.runner import BenchProgress, Group, ProgressObserver, run_group
from dqrm_cpu.lab.bench.harness.shared_tables import CPU
from dqrm_cpu.lab.bench.kernels.memory_floors import read_packed_rows
from dqrm_cpu.lab.bench.lookup.packed_table import BITS, SCALE, PackedTable
from dqrm_cpu.lab.bench.step.fbgemm import PACKAGE as FBGEMM
from dqrm_cpu.lab.bench.step.fbgemm import load_fbgemm

_INFERENCE = "fbgemm_gpu.split_table_batched_embeddings_ops_inference"
_CACHES, _LEAST_BYTES = 2, 1 << 29
_CACHED_BYTES = 1 << 20
_QUICK_ROWS, _QUICK_BAGS = 2_000, 64
_ROWS_READ = 1 << 22  # by the batches of a pool together: a line of 64 bytes each
_FEWEST_BATCHES, _MOST_BATCHES = 16, 1024
_BESIDE_BYTES = 1_000_000_000
_SEED = 1
_NOTES = (
    "Times are seconds per batch: one sample per round, the mean of the batches of a turn; quartiles are over rounds.",
    "Every row is as likely as any other: no cache helps with a table that it does not hold.",
    "All check that ids are rows of the table and write FP32: ours to one array, the others to a new one each time.",
)


@dataclass(frozen=True)
class LookupCase:
    """One table and the bags that are looked up in it."""

    name: str
    dim: int
    bag: int  # ids in a bag
    num_bags: int
    is_cached: bool

    def offsets(self) -> Tensor:
        """Returns where each bag begins, and where the last one ends: int64[B + 1]."""
        return torch.arange(0, self.num_bags * self.bag + 1, self.bag)

    def rows(self, cache_bytes: int) -> int:
        """Returns the rows of a table of codes that the largest cache does not hold, or that the core's own does."""
        code_bytes = _CACHED_BYTES if self.is_cached else max(_LEAST_BYTES, _CACHES * cache_bytes)
        return code_bytes * 8 // (BITS * self.dim)


CASES: Mapping[str, LookupCase] = MappingProxyType(
    {
        case.name: case
        for dim in (16, 64)
        for bag, num_bags in ((1, 4096), (20, 1024))
        for case in (
            LookupCase(f"d{dim}_bag{bag}", dim, bag, num_bags, is_cached=False),
            LookupCase(f"d{dim}_bag{bag}_cached", dim, bag, num_bags, is_cached=True),
        )
    }
)


def make_lookups(case: LookupCase, num_rows: int, num_batches: int) -> Pool:
    """Makes batches of bags with random ids, the same for the same case."""
    generator = torch.Generator().manual_seed(_SEED)
    offsets, nothing = case.offsets(), torch.empty(0)
    works = []
    for _ in range(num_batches):
        ids = torch.randint(num_rows, (case.num_bags * case.bag,), generator=generator)
        works.append(Work(Batch(nothing, ids.int(), offsets, nothing), ids))
    return Pool(works)


def lookup_contestants(case: LookupCase, table: PackedTable) -> Iterator[Contestant]:
    """Yields lookups of the same rows; all but the floor return the same f32[B, dim]."""
    yield Prepared("ours_int4", "codes and one scale for the table, summed as integers", lambda: _ours(case, table))
    about = "torch.ops.quantized.embedding_bag_4bit_rowwise_offsets, a scale for each row"
    yield Prepared("torch_int4", about, lambda: _torch_int4(case, table))
    about = "FBGEMM's table-batched embeddings for inference, INT4, a scale for each row"
    yield Prepared("fbgemm_int4", about, lambda: _fbgemm_int4(case, table))
    yield Prepared("torch_fp32", "torch.nn.functional.embedding_bag", lambda: _torch_fp32(case, table))
    yield Prepared("ours_fp32", "the lookup of training, not quantized", lambda: _ours_fp32(case, table))
    yield Prepared(
        "row_floor", "reads eight bytes of each row of codes and writes as much", lambda: _floor(case, table)
    )


def _ours(case: LookupCase, table: PackedTable) -> Step:
    bags, out = PackedBags(table.codes, table.dim, BITS, SCALE), torch.empty(case.num_bags, table.dim)
    offsets = case.offsets()
    return lambda work: bags.pool(work.batch.ids, offsets, out)


def _torch_int4(case: LookupCase, table: PackedTable) -> Step:
    rows, offsets = table.with_row_parameters(first=False), case.offsets().int()
    operator: Any = torch.ops.quantized.embedding_bag_4bit_rowwise_offsets

    def step(work: Work) -> Tensor:
        pooled: Tensor = operator(rows, work.batch.ids, offsets, include_last_offset=True)
        return pooled

    return step


def _fbgemm_int4(case: LookupCase, table: PackedTable) -> Step:
    inference: Any = load_fbgemm(_INFERENCE)
    kind = inference.SparseType
    embeddings = inference.IntNBitTableBatchedEmbeddingBagsCodegen(
        [("table", table.num_rows, table.dim, kind.INT4, inference.EmbeddingLocation.HOST)],
        device="cpu",
        output_dtype=kind.FP32,
        bounds_check_mode=inference.BoundsCheckMode.NONE,
    )
    embeddings.initialize_weights()
    # Ours instead of its own: those lie on huge pages.
    embeddings.weights_host = table.with_row_parameters(first=True).view(-1)
    offsets = case.offsets().int()

    def step(work: Work) -> Tensor:
        pooled: Tensor = embeddings(work.batch.ids, offsets)
        return pooled

    return step


def _torch_fp32(case: LookupCase, table: PackedTable) -> Step:
    floats, offsets = table.floats, case.offsets().int()
    return lambda work: embedding_bag(work.batch.ids, floats, offsets, mode="sum", include_last_offset=True)


def _ours_fp32(case: LookupCase, table: PackedTable) -> Step:
    kernels: Kernels = select_kernels("auto", CPU)
    tables = Tables(table.floats, torch.tensor([0, table.num_rows]))
    offsets, scale, out = case.offsets(), torch.ones(1), torch.empty(case.num_bags, 2, table.dim)

    def step(work: Work) -> Tensor:
        ids = work.batch.ids
        bags = Bags(ids.view(1, -1), None) if case.bag == 1 else Bags(ids, offsets)
        kernels.gather_quantize_pool(tables, bags, scale, UNQUANTIZED, out)
        return out[:, 1]

    return step


def _floor(case: LookupCase, table: PackedTable) -> Step:
    out, row_bytes = torch.empty(case.num_bags, table.dim), table.codes.shape[1]

    def step(work: Work) -> Tensor:
        places = table.codes.data_ptr(), row_bytes, work.batch.ids.data_ptr(), case.bag
        read_packed_rows(*places, case.num_bags, out.data_ptr(), table.dim)
        return out

    return step


def _run(name: str, environment: RunEnvironment, observe: ProgressObserver) -> CaseResult:
    case = CASES[name]
    caches = [cache.size_kib * 1024 for cache in environment.machine.caches]
    num_rows = case.rows(max(caches, default=0))
    if environment.quick:
        case, num_rows = replace(case, num_bags=_QUICK_BAGS), _QUICK_ROWS
    table = PackedTable(num_rows, case.dim, _SEED)
    needed, free = table.all_bytes + _BESIDE_BYTES, environment.machine.memory_available_bytes
    if free < needed:
        raise DeviceError(
            f"case {name} needs {format_size(needed)} of memory, {format_size(free)} are free; "
            "leave it out with --cases, or try --quick"
        )
    num_batches = min(_MOST_BATCHES, max(_FEWEST_BATCHES, _ROWS_READ // (case.num_bags * case.bag)))
    num_batches = _FEWEST_BATCHES if case.is_cached or environment.quick else num_batches
    observe(BenchProgress(name, "filling tables"))
    pool, plan = make_lookups(case, num_rows, num_batches), environment.plan
    group, total = (
        Group("lookup", list(lookup_contestants(case, table)), "torch_int4"),
        plan.warmup_rounds + plan.rounds,
    )

    def advance(done: int) -> None:
        observe(BenchProgress(name, group.name, done, total, plan.warmup_rounds))

    result = run_group(group, pool, plan, advance)
    where = "fit into a core's own cache" if case.is_cached else "fit into no cache"
    about = f"{num_rows:,} rows of {case.dim} codes, which {where}; {case.num_bags:,} bags of {case.bag}"
    facts = {
        "rows": num_rows,
        "embedding_dim": case.dim,
        "ids_per_bag": case.bag,
        "bags": case.num_bags,
        "code_bytes": table.codes.numel(),
        "largest_cache_bytes": max(caches, default=0),
        "batches_in_pool": num_batches,
    }
    return CaseResult(name, f"{about}{'; quick' if environment.quick else ''}", facts, (result,))


_PEERS = ("torch_int4", "fbgemm_int4", "torch_fp32", "ours_fp32", "row_floor")

LOOKUP = Benchmark(
    "lookup",
    tuple(CASES),
    tuple(CASES),
    _run,
    tuple(Ratio(f"ours_int4_over_{peer}", "int4", "ours_int4", peer) for peer in _PEERS),
    _NOTES,
    (FBGEMM, "numba"),
)
