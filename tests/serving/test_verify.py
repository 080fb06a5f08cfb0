"""verify: exported files beside the run, limits that a wrong file passes, and mistakes of whoever asks."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from test_serving import LOG_SCHEMA, as_csv, log_rows

from commands import dqrm_cpu
from dqrm_cpu.metrics.click import click_metrics
from scoring import SMALL, evaluated_logits, succeed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, its files, and files of another run with the same columns."""
    made = tmp_path_factory.mktemp("verify")
    (made / "rows.csv").write_text(as_csv(log_rows(1500, seed=1)))
    (made / "schema.toml").write_text(LOG_SCHEMA)
    succeed("prepare", made / "rows.csv", "--schema", made / "schema.toml", "--out", made / "data")
    for name, seed in (("run", "3"), ("other", "4")):
        succeed("train", "--data", made / "data", "--run-dir", made / name, *SMALL, "--seed", seed)
        succeed("export", made / name)
        succeed("export", made / name, "--format", "onnx")
    succeed("export", made / "run", "--format", "openvino")
    return made


def test_every_format_is_compared_with_the_run(folder: Path) -> None:
    files = [folder / "run" / name for name in ("model.safetensors", "model.onnx", "model.xml")]
    found = json.loads(succeed("verify", *files, "--against", folder / "run", "--part", "validation", "--json"))
    logits, clicks = evaluated_logits(folder / "run")
    assert found["auc"] == pytest.approx(click_metrics(logits, clicks).auc, abs=1e-9)
    assert found["rows"] == logits.size
    assert found["passed"]
    sizes = [sum(path.stat().st_size for path in folder.glob(f"run/model.{ends}")) for ends in ("s*", "onnx*", "[xb]*")]
    assert [one["bytes"] for one in found["files"]][:3] == sizes
    names = ["dqrm_cpu.serving", "ONNX Runtime", "OpenVINO", "OpenVINO"]
    assert all(one["runtime"].startswith(name) for one, name in zip(found["files"], names, strict=False))
    for one in found["files"]:
        assert 0 < one["largest_logit_difference"] <= (0.1 if "bf16" in one["runtime"] else 1e-5)
        assert one["auc"] == pytest.approx(found["auc"] + one["auc_difference"], abs=1e-12)
    shown = succeed("verify", *files, "--against", folder / "run", "--rows", "50")
    assert "on 50 test rows" in shown
    assert len(shown.splitlines()) == 2 + len(found["files"])


def test_a_packed_file_is_also_compared_in_integers(folder: Path) -> None:
    run = folder / "run"
    packed, onnx = run / "model.safetensors", run / "model.onnx"
    rest = ("--against", run, "--products", "int8")
    found = json.loads(succeed("verify", packed, onnx, *rest, "--json"))
    exact, integers, _ = found["files"]
    assert [one["runtime"] for one in (exact, integers)] == ["dqrm_cpu.serving", "dqrm_cpu.serving, int8"]
    assert exact["largest_logit_difference"] <= 1e-5 < integers["largest_logit_difference"] < 0.1
    assert 0 < abs(integers["auc_difference"]) < 0.01
    output = dqrm_cpu("verify", onnx, *rest)
    assert (output.returncode, "none of these ends in .safetensors" in output.stderr) == (2, True)


def test_a_file_that_is_further_from_the_run_than_a_limit_fails(folder: Path) -> None:
    other = folder / "other" / "model.onnx"
    output = dqrm_cpu("verify", folder / "run" / "model.onnx", other, "--against", folder / "run")
    assert output.returncode == 1
    assert f"{other}: a logit differs by" in output.stderr
    assert str(folder / "run" / "model.onnx") not in output.stderr
    limits = ("--max-logit", "100", "--max-auc", "1")
    assert dqrm_cpu("verify", other, "--against", folder / "run", *limits).returncode == 0
    output = dqrm_cpu("verify", other, "--against", folder / "run", *limits[:2], "--max-auc", "0")
    assert (output.returncode, "AUC differs by" in output.stderr) == (1, True)


@pytest.mark.parametrize("how", ["platt", "isotonic"])
def test_calibrated_files_are_compared_with_calibrated_logits(folder: Path, tmp_path: Path, how: str) -> None:
    files = []
    for name, of_format in (("m.safetensors", "packed"), ("m.onnx", "onnx")):
        files.append(tmp_path / name)
        succeed("export", folder / "run", "--format", of_format, "--out", files[-1], "--calibrate", how)
    found = json.loads(succeed("verify", *files, "--against", folder / "run", "--json"))
    assert max(one["largest_logit_difference"] for one in found["files"]) > 0


def test_a_run_in_fp32_is_compared_as_it_was_exported(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "fp32"
    succeed("train", "--data", folder / "data", "--run-dir", run, *SMALL, "--quant.method", "none")
    succeed("export", run)
    output = dqrm_cpu("verify", run / "model.safetensors", "--against", run)
    assert (output.returncode, "quantized now" in output.stderr) == (0, True)


def test_mistakes_are_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, packed = folder / "run", folder / "run" / "model.safetensors"
    bad, rest = tmp_path / "bad.onnx", ("--against", run)
    bad.write_bytes(np.random.default_rng(1).bytes(999))
    (tmp_path / "model.txt").touch()
    for arguments, status, words in (
        ((packed,), 2, "against which run?"),
        ((packed, "--against", packed), 2, "is a packed file; give the folder of a run"),
        ((tmp_path / "none.onnx", *rest), 2, "there is no file"),
        ((tmp_path / "model.txt", *rest), 2, "is no exported file: those end in .safetensors, .onnx, .xml, .pte"),
        ((bad, *rest), 1, "is no exported model"),
        ((packed, *rest, "--max-logit", "-1"), 2, "no number from 0 on"),
        ((packed, *rest, "--rows", "0"), 2, "no whole number from 1 on"),
    ):
        output = dqrm_cpu("verify", *arguments)
        assert output.returncode == status, (arguments, output.stderr)
        assert words in output.stderr, output.stderr
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    output = dqrm_cpu("verify", run / "model.onnx", *rest)
    assert "ONNX files need the package onnxruntime: pip install 'dqrm-cpu[verify]'" in output.stderr


def test_a_file_of_another_shape_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(as_csv(log_rows(900, seed=9)))
    succeed("prepare", tmp_path / "rows.csv", "--schema", folder / "schema.toml", "--out", tmp_path / "data")
    succeed("train", "--data", tmp_path / "data", "--run-dir", tmp_path / "run", *SMALL)
    succeed("export", tmp_path / "run")
    output = dqrm_cpu("verify", tmp_path / "run" / "model.safetensors", "--against", folder / "run")
    assert (output.returncode, "it was written from another run" in output.stderr) == (2, True)
