"""A program of ExecuTorch gives the logits of dqrm_cpu.serving, in ExecuTorch's own runtime."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from test_serving import BAG_NAMES, BAG_SCHEMA, LOG_SCHEMA, as_csv, bag_rows, log_rows

from commands import dqrm_cpu
from dqrm_cpu.data.store.manifest import read_manifest
from dqrm_cpu.predict.packed_scorer import slots_of
from dqrm_cpu.predict.runtimes import open_file
from dqrm_cpu.predict.scorer import prepared_rows
from dqrm_cpu.serving import Model
from dqrm_cpu.serving.model import probabilities
from scoring import SMALL, scored_run, succeed


def require_alike(run: Path, data: Path, *options: str) -> None:
    """Compares logits of the validation rows, in batches of several sizes."""
    succeed("export", run, *options)
    succeed("export", run, "--format", "pte", *options)
    model, (program,) = Model.open(run / "model.safetensors"), open_file(run / "model.pte")
    assert program.description == model.description
    (batch,) = prepared_rows(data, read_manifest(data), "validation").batches(0)
    dense, ids = batch.dense.numpy(), slots_of(batch, model.description)
    expected = model.logits_of_ids(dense, ids)
    assert np.ptp(expected) > 0.01
    for count in (1, 17, len(ids)):
        found, wanted = program.logits(dense[:count], ids[:count]), expected[:count]
        # An isotonic line may be as good as upright: its logits near 0 and 1 tell a rounding of those that it corrects.
        np.testing.assert_allclose(probabilities(found), probabilities(wanted), rtol=0, atol=1e-5)
        if "isotonic" not in options:
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("log")
    (folder / "rows.csv").write_text(as_csv(log_rows(1500, seed=1)))
    (folder / "schema.toml").write_text(LOG_SCHEMA)
    succeed("prepare", folder / "rows.csv", "--schema", folder / "schema.toml", "--out", folder / "data")
    succeed("train", "--data", folder / "data", "--run-dir", folder / "run", *SMALL)
    yield folder


@pytest.mark.parametrize("options", [("--calibrate", "platt"), ("--calibrate", "isotonic")])
def test_calibrated(log: Path, options: tuple[str, ...]) -> None:
    require_alike(log / "run", log / "data", "--overwrite", *options)


@pytest.mark.parametrize(
    "options",
    [
        ("--quant.activation-bits", "8", "--quant.mlp-bias-bits", "8", "--quant.embedding-bits", "2"),
        ("--model.interaction", "cross", "--model.cross-rank", "4", "--quant.embedding-bits", "8"),
        ("--model.interaction", "cat", "--quant.method", "dorefa", "--quant.mlp-granularity", "matrix"),
        ("--quant.mlp-bits", "32", "--model.table-dims", "C3=4,C7=5,C26=4"),
        ("--quant.method", "none", "--model.embedding-dim", "9", "--model.bottom-mlp", "9"),
    ],
)
def test_every_kind_of_network(tmp_path: Path, options: tuple[str, ...]) -> None:
    run = scored_run(tmp_path, *options)
    require_alike(run.run_dir, run.data)


@pytest.mark.parametrize("options", [(), ("--model.pooling", "mean", "--model.table-dims", "C1=4,C2=12")])
def test_several_values_in_a_cell(tmp_path: Path, options: tuple[str, ...]) -> None:
    with (tmp_path / "rows.csv").open("w") as file:
        csv.writer(file, lineterminator="\n").writerows([BAG_NAMES, *bag_rows(900, 1)])
    (tmp_path / "schema.toml").write_text(BAG_SCHEMA)
    data, run = tmp_path / "data", tmp_path / "run"
    succeed("prepare", tmp_path / "rows.csv", "--schema", tmp_path / "schema.toml", "--out", data)
    succeed("train", "--data", data, "--run-dir", run, *SMALL, *options)
    require_alike(run, data)


def test_verify_runs_it(log: Path) -> None:
    out = log / "model.pte"
    succeed("export", log / "run", "--format", "pte", "--out", out)
    found = json.loads(succeed("verify", out, "--against", log / "run", "--json"))
    (file,) = found["files"]
    assert file["runtime"].startswith("ExecuTorch ")
    assert file["bytes"] == out.stat().st_size
    assert file["largest_logit_difference"] <= 1e-5


def test_what_is_no_program_is_refused(log: Path, tmp_path: Path) -> None:
    (tmp_path / "model.pte").write_bytes(np.random.default_rng(1).bytes(999))
    output = dqrm_cpu("verify", tmp_path / "model.pte", "--against", log / "run")
    assert (output.returncode, "is no exported model" in output.stderr) == (1, True)
