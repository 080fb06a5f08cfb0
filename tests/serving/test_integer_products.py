"""Products of whole numbers: the integers of an oracle, one outcome for a row, whatever stands beside it."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported_models import random_rows, write_exported

from dqrm_cpu.errors import CheckpointError, ConfigError
from dqrm_cpu.serving import Model, UnusableRowError
from tiny import tiny_config

ODD = {"bottom_mlp": (100, 70, 6), "top_mlp": (130, 65, 33, 1)}
MODELS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({**ODD, "interaction": "cat"}, {"mlp_bits": 8}),
    (ODD, {"mlp_granularity": "matrix"}),
    ({"interaction": "cat"}, {"activation_bits": 8}),
    ({"interaction": "cross", "cross_rank": 4, "cross_layers": 2}, {"activation_bits": 4}),
    ({"interaction": "cross", "cross_layers": 2, "table_dims": "C2=20"}, {}),
]


@pytest.mark.parametrize(("shape", "quant"), MODELS)
def test_logits_are_those_of_numpy_and_near_those_in_fp32(
    tmp_path: Path, shape: dict[str, Any], quant: dict[str, Any]
) -> None:
    config = tiny_config({"table_rows": (40, 3, 1500), **shape}, quant)
    path = write_exported(tmp_path / "model.safetensors", config)
    exact, plain = Model.open(path, fused=False), Model.open(path, fused=False, products="int8")
    fused = Model.open(path, fused=True, threads=2, products="int8")
    dense, ids = random_rows(exact.description, 700, seed=1)
    expected, found = plain.logits_of_ids(dense, ids), fused.logits_of_ids(dense, ids)
    # Where NumPy sums in another order, a number may be rounded to the next byte.
    apart = np.abs(found - expected)
    assert (apart <= 2e-6).mean() > 0.99
    assert apart.max() < 2e-3
    in_fp32 = exact.logits_of_ids(dense, ids)
    has_grid = "activation_bits" in quant
    np.testing.assert_allclose(found, in_fp32, atol=2e-6 if has_grid else 0.05 * float(np.ptp(in_fp32)))
    assert has_grid or np.abs(found - in_fp32).max() > 1e-5
    for count in (0, 1, 3, 4, 13, 47, 50, 130):
        np.testing.assert_array_equal(
            fused.logits_of_ids(dense[-count - 1 : -1], ids[-count - 1 : -1]), found[-count - 1 : -1]
        )
    alone = Model.open(path, fused=True, threads=1, products="int8")
    np.testing.assert_array_equal(alone.logits_of_ids(dense, ids), found)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_config({"table_rows": (40, 3, 1500)})
    return write_exported(tmp_path_factory.mktemp("integers") / "model.safetensors", config)


def test_files_without_small_codes_are_refused(tmp_path: Path) -> None:
    for bits in (16, 32):
        path = write_exported(tmp_path / f"{bits}.safetensors", tiny_config(quant={"mlp_bits": bits}))
        with pytest.raises(ConfigError, match="has no layer for products in int8"):
            Model.open(path, products="int8")
    with pytest.raises(ConfigError, match="products='int4': no such arithmetic; there are fp32, int8"):
        Model.open(path, products="int4")


def test_without_numba_numpy_multiplies_whole_numbers(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Model.open(file, fused=False, products="int8")
    dense, ids = random_rows(expected.description, 9, seed=3)
    monkeypatch.setitem(sys.modules, "numba", None)
    found = Model.open(file, products="int8").logits_of_ids(dense, ids)
    np.testing.assert_array_equal(found, expected.logits_of_ids(dense, ids))


def test_rows_that_are_no_rows_are_refused_as_in_fp32(file: Path) -> None:
    model = Model.open(file, fused=True, products="int8")
    dense, ids = random_rows(model.description, 60, seed=2)
    dense[49, 12] = np.nan
    with pytest.raises(UnusableRowError, match="row 49: a number is not finite"):
        model.logits_of_ids(dense, ids)
    kinds = [(True, "fp32"), (True, "int8"), (False, "int8")]
    models, refusals = [Model.open(file, fused=fused, products=products) for fused, products in kinds], 0
    for column in range(13):
        for value in (3e38, -3e38):
            row = np.zeros_like(dense[:1])
            row[0, column] = value
            in_fp32, *in_int8 = (_is_refused(model, row, ids[:1]) for model in models)
            assert not in_fp32 or all(in_int8)
            refusals += in_fp32
    assert refusals


def _is_refused(model: Model, dense: np.ndarray, ids: np.ndarray) -> bool:
    try:
        with np.errstate(all="ignore"):
            model.logits_of_ids(dense, ids)
    except CheckpointError as error:
        assert "gives scores that are not finite" in str(error)
        return True
    return False
