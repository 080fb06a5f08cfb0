"""`bench exchange`: which gradients travel, who carries them over what, and what is compared with what."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

from dqrm_cpu.config.schema import WIRES
from dqrm_cpu.kernels.ccl import oneccl_files
from dqrm_cpu.lab.bench.harness.benchmark import Benchmark, RunEnvironment
from dqrm_cpu.lab.bench.harness.cases import CASES as MODEL_CASES
from dqrm_cpu.lab.bench.harness.cases import Case, quick
from dqrm_cpu.lab.bench.harness.result import CaseResult, ContestantResult, GroupResult, Ratio, Timing
from dqrm_cpu.lab.bench.harness.runner import BenchProgress, ProgressObserver
from dqrm_cpu.lab.bench.harness.start_ranks import run_ranks

RANKS = 2
TRANSPORTS = ("oneccl", "mpi", "gloo")

MLP_FORMS = MappingProxyType({"mlp_fp32": ("fp32", "none"), "mlp_bf16": ("bf16", "none"), "mlp_int8": ("int8", "mlp")})
"""The form of MLP gradients and the error feedback, by name."""

STEP_WIRES = ("sparse", "int8")
STEP_OVERLAPS = ("off", "on")
STEP_EXCHANGES = (*((wire, "replicate") for wire in STEP_WIRES), ("int8", "shard"))
"""The wire, and where the tables are: all on each rank, or each on one or cut over all."""
STEP_ALONE, PER_TABLE, FUSED = "step_alone", "torch_gloo_per_table", "torch_gloo_fused"
STEP_TABLE_BYTES = 1_000_000_000

_RANK_MODULE = "dqrm_cpu.lab.bench.exchange.exchange_rank"

_NOTES = (
    "Times are seconds per step, those of the slowest rank: one sample per round, the mean of the steps of a turn.",
    "tables: from the pooled gradient that a backward leaves to the sum of all ranks. mlp: with a copy of the "
    "gradient. step: whole training steps, all tables on each rank, or (shard) on one or cut over all; efficiency is "
    "the time of one rank alone over ranks times that of all.",
    "bytes_per_step is what rank 0 hands over for the other ranks: counted; computed for torch's contestants, with "
    "int64 rows. phases_s are medians on rank 0; wire includes waiting for the other ranks.",
)


@dataclass(frozen=True)
class ExchangeTask:
    """The task that the ranks of one case are started with."""

    case: str
    quick: bool
    transports: tuple[str, ...]
    rounds: int
    turn_s: float
    threads: int  # of each rank


def _terabyte(dim: int) -> Case:
    case = MODEL_CASES["terabyte_2048"]()
    about = f"Terabyte's 26 tables, cut as for the step, D {dim}, batch 2048 on each rank, MLPs of the preset"
    model = case.config.model
    model = replace(model, embedding_dim=dim, bottom_mlp=(*model.bottom_mlp[:-1], dim))
    return replace(case, name=f"terabyte_d{dim}", about=about, config=replace(case.config, model=model))


CASES: Mapping[str, Callable[[], Case]] = MappingProxyType(
    {"terabyte_d64": lambda: _terabyte(64), "terabyte_d16": lambda: _terabyte(16)}
)


def usable_transports() -> tuple[str, ...]:
    """Returns those that take part unless others are asked for."""
    return tuple(name for name in TRANSPORTS if name != "oneccl" or not oneccl_files().missing)


def make_case(task: ExchangeTask) -> Case:
    """Makes the same case on every rank."""
    case = CASES[task.case]()
    return quick(case) if task.quick else case


def contestant_name(transport: str, what: str) -> str:
    return f"{transport}_{what}"


def step_name(transport: str, wire: str, overlap: str = "off", tables: str = "replicate") -> str:
    """Returns the name of whole steps over a transport."""
    name = f"step_{transport}_{wire}" + ("_shard" if tables == "shard" else "")
    return name + ("_overlap" if overlap == "on" else "")


def baseline(group: str, transports: tuple[str, ...]) -> str:
    """Returns the contestant that a table shows the others of its group against."""
    return {"tables": PER_TABLE, "mlp": contestant_name(transports[0], "mlp_fp32"), "step": STEP_ALONE}[group]


def _ratios(transports: tuple[str, ...]) -> Iterator[Ratio]:
    """Yields ratios; the variant is the transport."""
    for transport in transports:
        for wire in WIRES:
            name = contestant_name(transport, wire)
            yield Ratio(f"{wire}_over_per_table_gloo", transport, name, PER_TABLE)
            yield Ratio(f"{wire}_over_fused_gloo", transport, name, FUSED)
            if wire != "sparse":
                yield Ratio(f"{wire}_over_sparse", transport, name, contestant_name(transport, "sparse"))
        for name in MLP_FORMS:
            if name != "mlp_fp32":
                mlp_fp32 = contestant_name(transport, "mlp_fp32")
                yield Ratio(f"{name}_over_mlp_fp32", transport, contestant_name(transport, name), mlp_fp32)
        for wire in STEP_WIRES:
            apart, overlapping = step_name(transport, wire), step_name(transport, wire, "on")
            yield Ratio(f"step_{wire}_over_alone", transport, apart, STEP_ALONE)
            yield Ratio(f"step_{wire}_overlap_on_over_off", transport, overlapping, apart)
        for overlap, what in zip(STEP_OVERLAPS, ("step", "overlapping_step"), strict=True):
            names = [step_name(transport, "int8", overlap, tables) for tables in ("shard", "replicate")]
            yield Ratio(f"{what}_int8_shard_over_replicate", transport, *names)


def exchange_benchmark(transports: tuple[str, ...], threads: int) -> Benchmark:
    """Makes the benchmark over these transports, with so many threads for each rank, which it starts itself."""

    def run(case: str, environment: RunEnvironment, observe: ProgressObserver) -> CaseResult:
        plan = environment.plan
        task = ExchangeTask(case, environment.quick, transports, plan.rounds, plan.turn_s, threads)
        observe(BenchProgress(case, f"starting ranks, over {', '.join(transports)}"))
        return _case_result(task, run_ranks(_RANK_MODULE, asdict(task), RANKS, threads))

    return Benchmark(
        "exchange", tuple(CASES), tuple(CASES), run, tuple(_ratios(transports)), _NOTES, prints_ratios=False
    )


def _case_result(task: ExchangeTask, figures: Mapping[str, Any]) -> CaseResult:
    """Reads what rank 0 left: `document.group_document` of each group."""
    ranks, groups = figures["ranks"], {}
    for name, plain in figures["groups"].items():
        entries = tuple(
            ContestantResult(
                contestant,
                entry["about"],
                Timing(tuple(entry["samples_s"]), entry["steps_per_turn"]),
                bytes_per_step=entry.get("bytes_per_step", {}),  # none where it trains whole steps
                phases_s=entry.get("phases_s", {}),
            )
            for contestant, entry in plain["contestants"].items()
        )
        groups[name] = GroupResult(name, baseline(name, task.transports), entries, plain["absent"])
    summaries = {
        "bytes_over_sparse_int64": _bytes_over_sparse_int64(groups["tables"]),
        "efficiency": _efficiency(groups["step"], ranks),
    }
    about = f"{make_case(task).about}; {ranks} ranks"
    facts = {"ranks": ranks, "transports": figures["transports"]}  # by name why each was taken
    return CaseResult(task.case, about, facts, tuple(groups.values()), summaries=summaries)


def _bytes_over_sparse_int64(tables: GroupResult) -> dict[str, float]:
    """Divides each contestant's bytes by those of the same gradients in FP32 with int64 rows."""
    of_torch = next((entry.bytes_in_all for entry in tables.entries if entry.name == PER_TABLE), 0.0)
    return {entry.name: entry.bytes_in_all / of_torch for entry in tables.entries} if of_torch else {}


def _efficiency(steps: GroupResult, ranks: int) -> dict[str, float]:
    """Divides the time of one rank alone by that of all ranks, for each contestant that trains on all."""
    medians_s = steps.medians_s()
    alone_s = medians_s.pop(STEP_ALONE)
    return {name: alone_s / (ranks * median_s) for name, median_s in medians_s.items()}
