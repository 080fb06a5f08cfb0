"""The models whose steps are scaled: two of the paper's shapes, and that of MLPerf's recommendation benchmark."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

from dqrm_cpu.base.memory import format_size
from dqrm_cpu.config import Config, preset_config
from dqrm_cpu.lab.bench.harness.cases import CASES, Case, cap_tables, quick
from dqrm_cpu.model.shapes import mlp_shapes

MLPERF = "mlperf_32768"
PUBLISHED_SAMPLES_PER_S = 0.98e6
"""Samples per second of Intel's published MLPerf training run of DLRM, on two sockets."""
PUBLISHED_GFLOPS_PER_CORE = 124.0
"""The rate of each core in that run, counted as `flops_per_sample` counts."""

_MLPERF_TABLE_ROWS = (
    *(39884406, 39043, 17289, 7420, 20263, 3, 7120, 1543, 63, 38532951, 2953546, 403346, 10),
    *(2208, 11938, 155, 4, 976, 14, 39979771, 25641295, 39664984, 585935, 12972, 108, 36),
)


def _mlperf() -> Case:
    config = preset_config("terabyte")
    model = replace(
        config.model,
        table_rows=_MLPERF_TABLE_ROWS,
        embedding_dim=128,
        bottom_mlp=(512, 256, 128),
        top_mlp=(1024, 1024, 512, 256, 1),
    )
    config = replace(config, model=model, train=replace(config.train, batch_size=32_768))
    return Case(MLPERF, "MLPerf's DLRM, D 128, batch 32768", config)


SCALING_CASES: Mapping[str, Callable[[], Case]] = MappingProxyType(
    {"kaggle_2048": CASES["kaggle_2048"], "terabyte_2048": CASES["terabyte_2048"], MLPERF: _mlperf}
)
"""Makers of the cases, by name."""


def scaling_case(name: str, is_quick: bool, limit_bytes: int) -> Case:
    """Makes a case whose tables take no more than `limit_bytes`; the largest ones are cut where they would."""
    case = SCALING_CASES[name]()
    if is_quick:
        return quick(case)
    if case.table_bytes <= limit_bytes:
        return case
    model = case.config.model
    rows = cap_tables(model.table_rows, model.embedding_dim, limit_bytes)
    about = f"{case.about}; its largest tables cut, {format_size(limit_bytes)} in all"
    return replace(case, about=about, config=replace(case.config, model=replace(model, table_rows=rows)))


def case_precisions(name: str) -> tuple[str, ...]:
    """Returns the precisions of products in which a case is run: MLPerf's in BF16, as the published run."""
    return ("bf16",) if name == MLPERF else ("fp32", "bf16")


def flops_per_sample(config: Config) -> int:
    """Counts the additions and multiplications that a step's matrix products need for a sample, nothing else.

    Each weight takes part in three products: output, its own gradient, and that of the input, which the first layer
    does not need.
    """
    shapes = mlp_shapes(config)
    weights = [shape.inputs * shape.outputs for shape in shapes.layers]
    return 6 * sum(weights) - 2 * weights[0]
