"""Packed files: written, read back, and worth what they say."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dqrm_cpu.comm.transport import SingleTransport
from dqrm_cpu.export.codes import pack_codes
from dqrm_cpu.export.model_files import pack_model
from dqrm_cpu.export.read import load_packed
from dqrm_cpu.export.rowwise import pack_rows, unpack_rows
from dqrm_cpu.export.write import packed_path
from dqrm_cpu.kernels.select import select_kernels
from dqrm_cpu.model.dlrm import Dlrm
from dqrm_cpu.model.size import model_bytes, packed_row_bytes
from dqrm_cpu.serving.stored import unpacked
from dqrm_cpu.train.run import RunRequest, train
from dqrm_cpu.train.session import open_scales
from plain_dlrm import fake_quantize
from tiny import CPU, tiny_config

KERNELS = select_kernels("numba", CPU)
METHODS: dict[str, dict[str, object]] = {
    "dqrm": {"method": "dqrm"},
    "wide": {"method": "dqrm", "step_width": (3.0,), "mlp_bits": 8},
    "by matrix": {"method": "dqrm", "mlp_granularity": "matrix"},
    "lsq": {"method": "lsq"},
    "pact": {"method": "pact", "mlp_granularity": "matrix"},
    "dorefa": {"method": "dorefa"},
    "INT8 biases": {"method": "dqrm", "mlp_bias_bits": 8},
    "INT4 biases of FP32 MLPs": {"method": "lsq", "mlp_bits": 32, "mlp_bias_bits": 4},
    "FP32 MLPs": {"method": "ptq", "mlp_bits": 32},
    "cross": {"method": "dqrm", "mlp_bias_bits": 4},
    "cross of low rank": {"method": "lsq"},
    "FP32 cross of low rank": {"method": "dqrm", "mlp_bits": 32},
}
CROSS = {"interaction": "cross", "cross_rank": 5}
MODELS: dict[str, dict[str, object]] = {
    "cross": {"interaction": "cross", "cross_layers": 2},
    "cross of low rank": CROSS,
    "FP32 cross of low rank": CROSS,
}


@given(
    rows=st.integers(0, 20), dim=st.integers(1, 19), bits=st.sampled_from([2, 3, 4, 8, 16]), seed=st.integers(0, 2**31)
)
def test_codes_come_back(rows: int, dim: int, bits: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (rows, dim)).astype(np.float32)
    packed = pack_codes(codes, bits)
    assert packed.shape == (rows, packed_row_bytes(dim, bits))
    assert np.array_equal(unpacked(packed, bits, dim), codes)
    assert packed.tolist() == [packed_slowly(row, bits) for row in codes.astype(int).tolist()]


def packed_slowly(codes: list[int], bits: int) -> list[int]:
    """Writes a row as one number, the first code in its lowest bits."""
    number = sum((code % (1 << bits)) << (bits * k) for k, code in enumerate(codes))
    return list(number.to_bytes(-(-len(codes) * bits // 8), "little"))


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("name", METHODS)
def test_a_model_comes_back_as_it_was_quantized(name: str, bits: int, tmp_path: Path) -> None:
    config = tiny_config(MODELS.get(name), {**METHODS[name], "embedding_bits": bits})
    model = Dlrm(config, KERNELS, CPU)
    model.initialize_(1)
    scale = open_scales(config.quant, model).for_evaluation()
    formula = model.table_formula
    assert formula is not None
    files = pack_model(tmp_path, config, model, scale)
    per_row = scale.repeat_interleave(model.tables.row_offset.diff())[:, None]
    tables = formula.values(model.tables.weight, per_row)
    biases = [layer.bias for _, layer, _ in model.mlp_layers()]
    if config.quant.mlp_bias_bits < 32:
        biases = [fake_quantize(b, b.abs().max(), config.quant.mlp_bias_bits) if len(b) else b for b in biases]
    matrices = [layer.weight if q is None else q[0].values(layer.weight, q[1]) for _, layer, q in model.mlp_layers()]
    for layout in ("dense", "sparse") if files.sparse else ("dense",):
        path = packed_path(tmp_path, layout)
        assert path.stat().st_size == getattr(files, layout)
        other = Dlrm(config, KERNELS, CPU)
        load_packed(path, other, config.quant)
        torch.testing.assert_close(other.tables.weight, tables, rtol=1e-6, atol=1e-7)
        for (_, layer, _), weight, bias in zip(other.mlp_layers(), matrices, biases, strict=True):
            torch.testing.assert_close(layer.weight, weight, rtol=1e-6, atol=1e-7)
            torch.testing.assert_close(layer.bias, bias, rtol=1e-6, atol=1e-7)
    assert (files.sparse is None) is (name == "dorefa")


@pytest.mark.parametrize("shape", [{}, CROSS], ids=["dot", "cross"])
def test_the_dense_file_is_as_large_as_the_formula_says(shape: dict[str, object], tmp_path: Path) -> None:
    """Beside the header: codes, scales, biases."""
    config = tiny_config(shape)
    model = Dlrm(config, KERNELS, CPU)
    model.initialize_(1)
    files = pack_model(tmp_path, config, model, open_scales(config.quant, model).for_evaluation())
    header = int.from_bytes(packed_path(tmp_path, "dense").read_bytes()[:8], "little")
    assert files.dense - 8 - header == model_bytes(config).int4


@pytest.mark.parametrize("shape", [{}, CROSS], ids=["dot", "cross"])
def test_the_file_of_a_run_is_as_large_as_its_widths_say(shape: dict[str, object], tmp_path: Path) -> None:
    config = tiny_config(shape, {"embedding_bits": 3, "mlp_bits": 8, "mlp_bias_bits": 4, "activation_bits": 8})
    model = Dlrm(config, KERNELS, CPU)
    model.initialize_(1)
    files = pack_model(tmp_path, config, model, open_scales(config.quant, model).for_evaluation())
    header = int.from_bytes(packed_path(tmp_path, "dense").read_bytes()[:8], "little")
    assert files.dense - 8 - header == model_bytes(config).packed


def test_dead_rows_take_a_bit(tmp_path: Path) -> None:
    config = tiny_config(model={"table_rows": (5000, 3, 500)})
    model = Dlrm(config, KERNELS, CPU)
    model.tables.weight[::100] = 1.0
    files = pack_model(tmp_path, config, model, open_scales(config.quant, model).for_evaluation())
    assert files.sparse is not None
    # 3 bytes a row in the dense file, a bit and now and then a rank in the sparse one; 56 live rows.
    saved = 5503 * 3 - 56 * 3 - (625 + 1 + 63) - 4 * (10 + 1 + 1)
    header = [int.from_bytes(packed_path(tmp_path, x).read_bytes()[:8], "little") for x in ("dense", "sparse")]
    assert files.dense - header[0] - (files.sparse - header[1]) == saved


def in_half_precision(low: float | np.float32, high: float | np.float32, bits: int) -> tuple[np.float32, np.float32]:
    """Bias and scale as they are stored."""
    bias = np.float32(np.float16(low))
    return bias, np.float32(np.float16((np.float32(high) - bias) / np.float32(2**bits - 1)))


def quantized_row(row: np.ndarray, low: np.float32, high: np.float32, bits: int) -> np.ndarray:
    bias, scale = in_half_precision(low, high, bits)
    codes = np.clip(np.rint((row - bias) * (np.float32(1) / scale)), 0, 2**bits - 1)
    values: np.ndarray = codes * scale + bias
    return values


def squared_error(row: np.ndarray, low: np.float32, high: np.float32, bits: int) -> float:
    return float(np.sum((quantized_row(row, low, high, bits) - row) ** 2))


def greedy_range(row: np.ndarray, bits: int) -> tuple[np.float32, np.float32]:
    """The search as the reports on it describe it: a bin off the end that hurts less; the best local optimum stays."""
    low, high = np.float32(row.min()), np.float32(row.max())
    bin_width, chosen = (high - low) / np.float32(200), (low, high)
    best = now = squared_error(row, low, high, bits)
    while low + 168 * bin_width < high:
        from_below = squared_error(row, low + bin_width, high, bits)
        from_above = squared_error(row, low, high - bin_width, bits)
        if now < min(from_below, from_above, best):
            best, chosen = now, (low, high)
        if from_below < from_above:
            low, now = low + bin_width, from_below
        else:
            high, now = high - bin_width, from_above
    return chosen


@pytest.mark.parametrize("bits", [2, 4])
def test_rowwise_is_a_greedy_search(bits: int) -> None:
    """Also while it searches, it takes bias and scale as they will be stored, in FP16."""
    weight = torch.randn(40, 16, generator=torch.Generator().manual_seed(2))
    found = unpack_rows(pack_rows(weight, bits), bits).numpy()
    expected = [quantized_row(row, *greedy_range(row, bits), bits) for row in weight.numpy()]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_sizes_of_updated_rows_are_those_of_a_model_without_the_others(tmp_path: Path) -> None:
    """What would be written if the tables had no rows but those that training changed."""
    config, only = (tiny_config(model={"table_rows": rows}) for rows in ((8192, 3, 500), (4096, 3, 500)))
    models = Dlrm(config, KERNELS, CPU), Dlrm(only, KERNELS, CPU)
    for model in models:
        model.initialize_(1)
        model.tables.weight.add_(1e-3)
        model.tables.weight[-503:] = 0.5
    models[0].first_rows(0, 4096, models[0].tables.weight[4096:8192])
    models[1].tables.weight[:4096] = models[0].tables.weight[:4096]
    found = []
    for model, of, folder in zip(models, (config, only), ("all", "only"), strict=True):
        scale = torch.full((3,), 0.01)
        found.append(pack_model(tmp_path / folder, of, model, scale))
    all_rows, updated = found
    assert all_rows.rows is not None
    assert updated.rows is not None
    assert all_rows.rows.updated == updated.rows.updated == updated.rows.rows == 4096 + 503
    assert all_rows.rows.live_updated == updated.rows.live
    assert all_rows.updated_fp32 == model_bytes(only).fp32
    header = [int.from_bytes(packed_path(tmp_path / x, "sparse").read_bytes()[:8], "little") for x in ("all", "only")]
    assert all_rows.updated_sparse is not None
    assert updated.sparse is not None
    assert all_rows.updated_sparse - header[0] == updated.sparse - header[1]


def test_a_run_leaves_its_packed_model(tmp_path: Path) -> None:
    config = tiny_config(quant={"step_width": (4.0,)})
    train(config, RunRequest(tmp_path / "run", False, {}, io.StringIO()), SingleTransport())
    sizes = json.loads((tmp_path / "run" / "result.json").read_text())["packed_files"]
    assert {layout: sizes[layout] for layout in ("dense", "sparse")} == {
        layout: packed_path(tmp_path / "run" / "packed", layout).stat().st_size for layout in ("dense", "sparse")
    }
    rows = sizes["rows"]
    assert 0 < rows["live_updated"] <= rows["updated"] < rows["rows"] == 543
    assert rows["live_updated"] <= rows["live"]
    assert sizes["updated_sparse"] < sizes["sparse"]
    fp32 = replace(config, quant=replace(config.quant, method="none", step_width=(1.0,)))
    train(fp32, RunRequest(tmp_path / "fp32", False, {}, io.StringIO()), SingleTransport())
    assert json.loads((tmp_path / "fp32" / "result.json").read_text())["packed_files"] is None
