"""Compiled code gives the logits that NumPy gives, whatever the model, the batch, its strides and the threads."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported_models import random_rows, write_exported
from hypothesis import given
from hypothesis import strategies as st

from dqrm_cpu.errors import CheckpointError, ConfigError
from dqrm_cpu.serving import Model, UnusableRowError
from dqrm_cpu.serving.mapped_file import MappedFile
from dqrm_cpu.serving.model import read_description
from tiny import tiny_config

DCN = {"interaction": "cross", "cross_rank": 4, "cross_layers": 2}
MODELS: list[tuple[dict[str, Any], dict[str, Any], tuple[int, ...]]] = [
    *(
        ({"embedding_dim": dim, "bottom_mlp": (9, dim)}, {"embedding_bits": bits}, ())
        for bits, dim in (
            *((bits, 5) for bits in range(2, 17)),
            *((bits, 16) for bits in (2, 4, 8, 16)),
            *((bits, 35) for bits in (3, 4, 7, 13)),
        )
    ),
    ({"bottom_mlp": (100, 130, 6), "top_mlp": (130, 128, 33, 1)}, {"mlp_bits": 8}, ()),
    ({}, {"mlp_bits": 12, "mlp_bias_bits": 8}, ()),
    ({"interaction": "cat", "top_mlp": (32, 1)}, {"mlp_bits": 32}, (3,)),
    ({"pooling": "mean"}, {"activation_bits": 8}, (1, 7)),
    (DCN, {"activation_bits": 4}, (2,)),
    ({**DCN, "table_dims": "C1=3,C3=17"}, {}, (4,)),
    ({"table_dims": "C2=20"}, {"activation_bits": 8}, ()),
    ({}, {"method": "dorefa", "mlp_granularity": "matrix"}, (4,)),
    ({"embedding_dim": 64, "bottom_mlp": (64,), "top_mlp": (48, 1)}, {"method": "lsq"}, ()),
    ({"embedding_dim": 1, "bottom_mlp": (16, 1)}, {}, ()),
]


@pytest.mark.parametrize("layout", ["dense", "sparse"])
@pytest.mark.parametrize(("shape", "quant", "limits"), MODELS)
def test_logits_are_those_of_numpy(
    tmp_path: Path, shape: dict[str, Any], quant: dict[str, Any], limits: tuple[int, ...], layout: str
) -> None:
    if layout == "sparse" and quant.get("method") == "dorefa":
        layout = "dense"  # it has no code for zero
    config = tiny_config({"table_rows": (40, 3, 1500), **shape}, quant)
    path = write_exported(tmp_path / "model.safetensors", config, layout, limits)
    plain, fused = Model.open(path, fused=False), Model.open(path, fused=True, threads=2)
    dense, ids = random_rows(plain.description, 1003, seed=1)
    expected, found = plain.logits_of_ids(dense, ids), fused.logits_of_ids(dense, ids)
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)
    assert np.ptp(expected) > 1e-3
    for count in (0, 1, 4, 47, 50):
        np.testing.assert_array_equal(
            fused.logits_of_ids(dense[-count - 1 : -1], ids[-count - 1 : -1]), found[-count - 1 : -1]
        )
    by_table = np.ascontiguousarray(ids.T.astype(np.int32)).T
    np.testing.assert_array_equal(fused.logits_of_ids(dense.astype(np.float64), by_table), found)


@pytest.fixture(scope="module")
def sparse_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_config({"table_rows": (40, 3, 1500)})
    return write_exported(tmp_path_factory.mktemp("sparse") / "model.safetensors", config, "sparse", (3,))


@given(st.integers(0, 600), st.integers(0, 4), st.integers(-(2**63), 2**63 - 1), st.sampled_from([np.int64, np.int32]))
def test_ids_that_are_no_rows_are_refused(sparse_file: Path, row: int, slot: int, number: int, kind: Any) -> None:
    model = Model.open(sparse_file, fused=True, threads=2)
    dense, ids = random_rows(model.description, 601, seed=2)
    number = int(np.array(number).astype(kind))
    good = (0 if slot < 2 else -1) <= number < (40, 3, 1500, 1500, 1500)[slot]
    ids = ids.astype(kind)
    ids[row, slot] = number
    if good:
        model.logits_of_ids(dense, ids)
        return
    with pytest.raises(UnusableRowError, match="an id is no row of its table") as error:
        model.logits_of_ids(dense, ids)
    assert error.value.row == row


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(sparse_file: Path, value: float) -> None:
    model = Model.open(sparse_file, fused=True)
    dense, ids = random_rows(model.description, 60, seed=2)
    dense[49, 12] = value
    with pytest.raises(UnusableRowError, match="row 49: a number is not finite"):
        model.logits_of_ids(dense, ids)


def test_counts_that_lead_out_of_a_table_are_refused(sparse_file: Path, tmp_path: Path) -> None:
    """Tables are not compared with their checksums when a file is opened."""
    content, entries = bytearray(sparse_file.read_bytes()), MappedFile(sparse_file).entries
    at = 8 + int.from_bytes(content[:8], "little") + entries["C3.rank"].data_offsets[0]
    content[at : at + 12] = np.array([10**6] * 3, "<i4").tobytes()
    (tmp_path / "bad").write_bytes(content)
    file = MappedFile(tmp_path / "bad")
    model = Model(file, read_description(file), fused=True, threads=1)
    dense, ids = random_rows(model.description, 100, seed=3)
    with pytest.raises(CheckpointError, match=r"C3\.rank does not count the rows"):
        model.logits_of_ids(dense, ids)


def test_numba_is_taken_where_it_is_there_and_not_before_rows_are_scored(sparse_file: Path) -> None:
    script = (
        "import sys, numpy as np; from dqrm_cpu.serving import Model; "
        f"m = Model.open({str(sparse_file)!r}); before = 'numba' in sys.modules; "
        "m.logits_of_ids(np.zeros((1, 13), np.float32), np.zeros((1, 5), np.int64)); "
        "print(before, 'numba' in sys.modules, 'torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=100)
    assert found.stdout.split() == ["False", "True", "False"]


def test_without_numba_numpy_scores(sparse_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense, ids = random_rows(Model.open(sparse_file).description, 9, seed=3)
    expected = Model.open(sparse_file, fused=False).logits_of_ids(dense, ids)
    monkeypatch.setitem(sys.modules, "numba", None)
    np.testing.assert_array_equal(Model.open(sparse_file).logits_of_ids(dense, ids), expected)
    with pytest.raises(ConfigError, match="takes numba"):
        Model.open(sparse_file, fused=True).logits_of_ids(dense, ids)
