"""The same raw rows get the same probability, whatever computes it."""

import csv
from pathlib import Path

import numpy as np
import pytest
from packages import node_modules, run_node
from playwright.sync_api import Browser
from runtimes import onnx_runtime, openvino
from serving_process import serving
from test_serving import LOG_NAMES, LOG_SCHEMA, log_rows

from dqrm_cpu.data.store.manifest import read_manifest
from dqrm_cpu.serving import Model
from dqrm_cpu.serving.model import probabilities
from scoring import SMALL, evaluated, succeed
from test_predict_rows import predicted

pytestmark = pytest.mark.slow

NAMES = [*LOG_NAMES, "tags"]
SCHEMA = LOG_SCHEMA.replace('"item"]', '"item", "tags"]') + '[multi]\ntags = { separator = "|", limit = 3 }\n'
IN_CHROMIUM = """async (rows) => {
  const {BrowserScorer} = await import("/browser/browser_scorer.mjs");
  return (await BrowserScorer.open()).probabilities(rows);
}"""


def written(path: Path, rows: list[list[str]]) -> Path:
    with path.open("w") as file:
        csv.writer(file, lineterminator="\n").writerows([NAMES, *rows])
    return path


def test_every_program_gives_the_trainers_probability(browser: Browser, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    tags = ["a", " b", "naïve", "47.0", "", "NaN", "c", "d"]
    rows = [[*row, "|".join(rng.choice(tags, rng.integers(6)))] for row in log_rows(1500, seed=1)]
    data, run, packed, onnx = (tmp_path / name for name in ("data", "run", "run/model.safetensors", "run/model.onnx"))
    (tmp_path / "schema.toml").write_text(SCHEMA)
    succeed("prepare", written(tmp_path / "log.csv", rows), "--schema", tmp_path / "schema.toml", "--out", data)
    succeed("train", "--data", data, "--run-dir", run, *SMALL)
    succeed("export", run)
    succeed("export", run, "--format", "onnx")
    succeed("export", run, "--format", "openvino")

    held_out = rows[-read_manifest(data).num_rows("validation") :]
    raw = written(tmp_path / "raw.csv", held_out)
    dicts = [dict(zip(NAMES[1:], row[1:], strict=True)) for row in held_out]
    model = Model.open(packed)
    dense, ids = model.prepare(dicts)
    found = {
        "predict by the run": predicted(run, raw, out=tmp_path / "out.csv"),
        "predict by the packed file": predicted(packed, raw, "--data", data, out=tmp_path / "out.csv"),
        "dqrm_cpu.serving": model.predict(dicts),
        "Node": np.array(
            run_node("score.mjs", {"packed": str(packed), "onnx": str(onnx), "rows": dicts})["probabilities"]
        ),
    }
    for name, runtime, path in (
        ("ONNX Runtime", onnx_runtime, onnx),
        ("OpenVINO", openvino, onnx),
        ("OpenVINO's own format", openvino, onnx.with_suffix(".xml")),
    ):
        found[name] = probabilities(runtime(path, dense, ids))
    with serving(packed, "--onnx", str(onnx), "--web-runtime", str(node_modules() / "onnxruntime-web/dist")) as server:
        found["the server"] = np.array(server.json("POST", "/predict", {"rows": dicts})[1]["probabilities"])
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{server.port}/")
        found["Chromium"] = np.array(page.evaluate(IN_CHROMIUM, dicts))
        page.close()

    expected = evaluated(run)
    assert np.ptp(expected) > 0.01
    differences = {name: float(np.abs(of_program - expected).max()) for name, of_program in found.items()}
    assert {name for name, difference in differences.items() if not difference < 1e-5} == set(), differences
    assert len(differences) == 9
