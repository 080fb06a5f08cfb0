"""`bench exchange`: which gradients travel, who carries them over what, and what is compared with what."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from dqrm_cpu.bench.benchmark import Ratio
from dqrm_cpu.bench.cases import CASES as STEP_CASES
from dqrm_cpu.bench.cases import Case, quick
from dqrm_cpu.config import ModelConfig
from dqrm_cpu.config.schema import WIRES
from dqrm_cpu.kernels.ccl import oneccl_files

RANKS = 2
TRANSPORTS = ("oneccl", "mpi", "gloo")

MLP_FORMS = MappingProxyType({"mlp_fp32": ("fp32", "none"), "mlp_bf16": ("bf16", "none"), "mlp_int8": ("int8", "mlp")})
"""By name: the form of MLP gradients and the error feedback."""

STEP_WIRES = ("sparse", "int8")
STEP_OVERLAPS = ("off", "on")
PER_TABLE, FUSED = "torch_gloo_per_table", "torch_gloo_fused"
STEP_TABLE_BYTES = 1_000_000_000


@dataclass(frozen=True)
class ExchangeTask:
    """What the ranks of one world are told."""

    case: str
    quick: bool
    transports: tuple[str, ...]
    rounds: int
    turn_s: float
    threads: int  # of each rank


def _terabyte(dim: int) -> Case:
    case = STEP_CASES["terabyte_2048"]()
    about = f"Terabyte's 26 tables, cut as for the step, D {dim}, batch 2048 on each rank, MLPs of the preset"
    return replace(case, name=f"terabyte_d{dim}", about=about, config=replace(case.config, model=_with_dim(case, dim)))


def _with_dim(case: Case, dim: int) -> ModelConfig:
    model = case.config.model
    return replace(model, embedding_dim=dim, bottom_mlp=(*model.bottom_mlp[:-1], dim))


CASES: Mapping[str, Callable[[], Case]] = MappingProxyType(
    {"terabyte_d64": lambda: _terabyte(64), "terabyte_d16": lambda: _terabyte(16)}
)


def usable_transports() -> tuple[str, ...]:
    """Those that take part unless others are asked for."""
    return tuple(name for name in TRANSPORTS if name != "oneccl" or not oneccl_files().missing)


def make_case(task: ExchangeTask) -> Case:
    """The same on every rank."""
    case = CASES[task.case]()
    return quick(case) if task.quick else case


def contestant_name(transport: str, what: str) -> str:
    return f"{transport}_{what}"


def step_name(transport: str, wire: str, overlap: str = "off") -> str:
    return f"step_{transport}_{wire}" + ("_overlap" if overlap == "on" else "")


STEP_ALONE = "step_alone"


def ratios(transports: tuple[str, ...]) -> Iterator[Ratio]:
    """VARIANT is the transport."""
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
