"""`bench step`: whole training steps, ours and others'."""

from collections.abc import Iterator
from dataclasses import replace

import torch

from dqrm_cpu.config import Config
from dqrm_cpu.lab.bench.harness.benchmark import model_benchmark
from dqrm_cpu.lab.bench.harness.cases import CASES, Case
from dqrm_cpu.lab.bench.harness.contestant import Contestant
from dqrm_cpu.lab.bench.harness.result import Ratio
from dqrm_cpu.lab.bench.harness.runner import Amortized, Group
from dqrm_cpu.lab.bench.harness.shared_tables import SharedTables
from dqrm_cpu.lab.bench.step.fbgemm import PACKAGE as FBGEMM
from dqrm_cpu.lab.bench.step.fbgemm import FbgemmStep
from dqrm_cpu.lab.bench.step.floor import StepFloor
from dqrm_cpu.lab.bench.step.our_step import NEVER_AGAIN, OurStep
from dqrm_cpu.lab.bench.step.torch_dlrm import indexed_interaction
from dqrm_cpu.lab.bench.step.torch_step import Recipe, TorchStep, column_extremes

_PERIODS = (200, 1000)
_FORMS = ("bf16", "int8")


def step_groups(case: Case, shared: SharedTables) -> list[Group]:
    """Makes one group: everything is compared with everything."""
    floors = [
        StepFloor("floor_fp32", case, shared, torch.float32),
        StepFloor("floor_bf16", case, shared, torch.bfloat16),
    ]
    contestants = [*_ours(case, shared), *floors, *_torch(case, shared), *_libraries(case, shared)]
    return [Group("step", contestants, "torch_fp32")]


def _settings(case: Case, method: str, finder: str = "scan", period: int = 1, precision: str = "fp32") -> Config:
    config = case.config
    quant = replace(config.quant, method=method, scale_finder=finder, scale_period=period)
    return replace(config, quant=quant, train=replace(config.train, precision=precision))


def _ours(case: Case, shared: SharedTables) -> Iterator[Contestant]:
    exact = "INT4 tables and MLPs, scales exact at every step from the tracker"
    for name, about, config in (
        ("ours_fp32", "not quantized", _settings(case, "none")),
        ("ours_bf16", "not quantized, BF16 products", _settings(case, "none", precision="bf16")),
        ("ours_int4_exact", exact, _settings(case, "dqrm", "track")),
        ("ours_int4_exact_bf16", f"{exact}, BF16 products", _settings(case, "dqrm", "track", precision="bf16")),
        ("ours_int8", "not quantized, INT8 products", _settings(case, "none", precision="int8")),
        ("ours_int4_exact_int8", f"{exact}, INT8 products", _settings(case, "dqrm", "track", precision="int8")),
        ("ours_int4_scan_every", "INT4, tables scanned at every step", _settings(case, "dqrm")),
        ("ours_int4_scan_kept", "INT4, tables never scanned again", _settings(case, "dqrm", period=NEVER_AGAIN)),
    ):
        yield OurStep(name, about, config, shared)
    config = _settings(case, "dqrm", "track")
    for form in _FORMS:
        about = f"ours_int4_exact, the rows that training updates in {form.upper()}"
        of_form = replace(config, train=replace(config.train, master_rows=form))
        yield OurStep(f"ours_int4_exact_{form}_rows", about, of_form, shared)
    about = "ours_int4_exact, rows shrink by the iterations since their last update"
    shrinking = replace(config, train=replace(config.train, interval_decay=1e-6))
    yield OurStep("ours_int4_exact_interval_decay", about, shrinking, shared)


def _torch(case: Case, shared: SharedTables) -> Iterator[Contestant]:
    plain = "plain PyTorch: sparse EmbeddingBag per table, Linear, autograd, SGD"
    quantized = f"{plain}; lookup, then quantize; MLPs per row"
    recipes = [
        ("torch_fp32", f"{plain}; interaction Z[:, i, j]", Recipe(indexed_interaction)),
        ("torch_fp32_flat", f"{plain}; interaction by index_select", Recipe()),
        ("torch_bf16_flat", f"{plain}; the same under autocast to BF16", Recipe(autocast=True)),
        ("torch_qat_scan_every", f"{quantized}; aminmax over each table at every step", Recipe(scale_period=1)),
        ("torch_qat_scan_kept", f"{quantized}; scale never found again", Recipe(scale_period=NEVER_AGAIN)),
    ]
    if case.from_paper:
        about = f"{quantized}; min and max along the rows of each table at every step, as the authors' code does"
        recipe = Recipe(scale_period=1, extremes=column_extremes)
        recipes.append(("torch_qat_columns_every", about, recipe))
    if case.whole_table:
        about = f"{plain}; every table quantized as a whole at every step"
        recipes.append(("torch_qat_whole_table", about, Recipe(scale_period=1, whole_table=True)))
    for name, about, recipe in recipes:
        yield TorchStep(name, about, case, shared, recipe)


def _libraries(case: Case, shared: SharedTables) -> Iterator[Contestant]:
    yield FbgemmStep("fbgemm_fp32", "FBGEMM table-batched embeddings (EXACT_SGD), MLPs of PyTorch", case, shared)
    config = replace(_settings(case, "dqrm", "track"), kernels="ipex")
    yield OurStep("ours_int4_exact_ipex", "ours_int4_exact with IPEX's fused update", config, shared)


def _amortized() -> Iterator[Amortized]:
    for side in ("ours_int4", "torch_qat"):
        for period in _PERIODS:
            about = f"scale found every {period} steps"
            yield Amortized(f"{side}_scan_{period}", about, f"{side}_scan_kept", f"{side}_scan_every", period)


def _ratios() -> Iterator[Ratio]:
    for variant in ("fp32", "bf16"):
        suffix = "" if variant == "fp32" else "_bf16"
        yield Ratio("int4_exact_over_floor", variant, f"ours_int4_exact{suffix}", f"floor_{variant}")
        yield Ratio("ours_over_floor", variant, f"ours_{variant}", f"floor_{variant}")
    yield Ratio("torch_over_floor", "fp32", "torch_fp32_flat", "floor_fp32")
    yield Ratio("torch_over_floor", "bf16", "torch_bf16_flat", "floor_bf16")
    for key, denominator in (
        ("torch_fp32", "torch_fp32"),
        ("torch_fp32_flat", "torch_fp32_flat"),
        ("torch_bf16_flat", "torch_bf16_flat"),
        ("fbgemm_fp32", "fbgemm_fp32"),
    ):
        yield Ratio(f"int4_exact_over_{key}", "fp32", "ours_int4_exact", denominator)
        yield Ratio(f"int4_exact_over_{key}", "bf16", "ours_int4_exact_bf16", denominator)
        yield Ratio(f"fp32_over_{key}", "fp32", "ours_fp32", denominator)
        yield Ratio(f"fp32_over_{key}", "bf16", "ours_bf16", denominator)
    yield Ratio("int4_exact_over_ours_fp32", "fp32", "ours_int4_exact", "ours_fp32")
    yield Ratio("int4_exact_over_ours_fp32", "bf16", "ours_int4_exact_bf16", "ours_bf16")
    yield Ratio("int8_over_bf16", "fp32", "ours_int8", "ours_bf16")
    yield Ratio("int8_over_bf16", "int4", "ours_int4_exact_int8", "ours_int4_exact_bf16")
    for form in _FORMS:
        yield Ratio(
            f"int4_exact_{form}_rows_over_int4_exact", "fp32", f"ours_int4_exact_{form}_rows", "ours_int4_exact"
        )
    yield Ratio(
        "int4_exact_interval_decay_over_int4_exact", "fp32", "ours_int4_exact_interval_decay", "ours_int4_exact"
    )
    for period in ("every", *_PERIODS):
        yield Ratio(f"int4_exact_over_torch_qat_scan_{period}", "fp32", "ours_int4_exact", f"torch_qat_scan_{period}")
        yield Ratio(
            f"int4_scan_{period}_over_torch_qat_scan_{period}",
            "fp32",
            f"ours_int4_scan_{period}",
            f"torch_qat_scan_{period}",
        )
        yield Ratio(f"int4_exact_over_int4_scan_{period}", "fp32", "ours_int4_exact", f"ours_int4_scan_{period}")
        yield Ratio(f"torch_qat_scan_{period}_over_torch_fp32", "fp32", f"torch_qat_scan_{period}", "torch_fp32")
    yield Ratio("int4_exact_over_torch_qat_columns_every", "fp32", "ours_int4_exact", "torch_qat_columns_every")
    yield Ratio("int4_exact_over_torch_qat_whole_table", "fp32", "ours_int4_exact", "torch_qat_whole_table")
    yield Ratio("fbgemm_fp32_over_torch_fp32", "fp32", "fbgemm_fp32", "torch_fp32")
    yield Ratio("int4_exact_ipex_over_int4_exact", "fp32", "ours_int4_exact_ipex", "ours_int4_exact")


STEP = model_benchmark("step", tuple(CASES), step_groups, tuple(_ratios()), (FBGEMM,), tuple(_amortized()))
