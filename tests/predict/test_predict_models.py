"""`predict` with packed models and calibrations; which data set a model's ids belong to."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from commands import dqrm_cpu
from dqrm_cpu.api.scoring import evaluate, predict
from dqrm_cpu.cli.main import main
from dqrm_cpu.config.load import load_config
from dqrm_cpu.data.batch import BadBatchError, Batch
from dqrm_cpu.data.store.manifest import read_manifest, write_manifest
from dqrm_cpu.errors import DqrmError
from dqrm_cpu.metrics.calibration import FITS
from dqrm_cpu.predict.scorer import load_scorer
from dqrm_cpu.predict.trained_model import find_model
from packed_oracle import probabilities
from preparing import criteo_text, rows_of
from scoring import SMALL, Scored, evaluated_logits, scored_run, succeed
from test_predict_rows import predicted, write_lines

PREDICT = """
import sys
from dqrm_cpu.cli.main import main
assert main(["predict", *sys.argv[1:]]) == 0
print("torch" in sys.modules)
"""


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Scored:
    """A run with tables of other dimensions among its 26."""
    folder = tmp_path_factory.mktemp("scored")
    return scored_run(folder, "--quant.method", "dqrm", "--model.table-dims", "C3=4,C7=3,C26=12")


def test_a_packed_model_gives_what_numpy_reads_in_its_file(scored: Scored, tmp_path: Path) -> None:
    raw = write_lines(tmp_path / "raw", scored.lines)
    config = load_config(None, scored.run_dir / "config.toml", {})
    _, dense, ids = rows_of(scored.data, "validation")
    wanted = probabilities(scored.packed, config, dense, ids)
    np.testing.assert_allclose(predicted(scored.packed, raw, out=tmp_path / "out.csv"), wanted, rtol=1e-6, atol=1e-7)
    succeed("compress", scored.run_dir, "--layout", "sparse", "--out", tmp_path / "sparse.safetensors")
    found = predicted(tmp_path / "sparse.safetensors", raw, out=tmp_path / "out.csv")
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-7)


def test_a_run_and_its_exported_file_give_raw_rows_the_same_bits(scored: Scored, tmp_path: Path) -> None:
    raw, exported = write_lines(tmp_path / "raw", scored.lines), tmp_path / "model.safetensors"
    succeed("export", scored.run_dir, "--out", exported)
    by_run, by_file = (predicted(model, raw, out=tmp_path / "out.csv") for model in (scored.run_dir, exported))
    np.testing.assert_array_equal(by_run, by_file)
    np.testing.assert_allclose(by_run, scored.probabilities, rtol=1e-6, atol=1e-7)
    # In a process that has imported nothing: it scores the same without torch.
    command = [sys.executable, "-c", PREDICT, str(exported), str(raw), "--out", str(tmp_path / "alone.csv")]
    alone = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert (alone.returncode, alone.stdout) == (0, "False\n"), alone.stderr
    assert (tmp_path / "alone.csv").read_bytes() == (tmp_path / "out.csv").read_bytes()


def test_every_thread_scores_with_the_same_weights(tmp_path: Path) -> None:
    """Also those that quantize what goes into layers, by scales that were learned, and that correct logits."""
    learned = ("--quant.method", "lsq", "--quant.activation-bits", "8", "--data.negative-keep-rate", "0.5")
    scored = scored_run(tmp_path, *learned, "--model.interaction", "cross")
    _, dense, ids = rows_of(scored.data, "validation")
    batch = Batch(torch.from_numpy(dense), torch.from_numpy(ids.T.copy()), None, torch.zeros(len(dense)))
    for path in (scored.run_dir, scored.packed):
        model = find_model(path)
        scorer = load_scorer(model)
        np.testing.assert_array_equal(scorer.twin(model.config).logits(batch), scorer.logits(batch))


@pytest.mark.parametrize("how", ["platt", "isotonic"])
def test_calibration_is_fitted_to_the_validation_rows_of_the_run(scored: Scored, tmp_path: Path, how: str) -> None:
    logits, clicks = evaluated_logits(scored.run_dir)
    wanted = 1 / (1 + np.exp(-FITS[how](logits, clicks).logits(logits).astype(np.float64)))
    raw = write_lines(tmp_path / "raw", scored.lines)
    found = predicted(scored.run_dir, raw, "--calibrate", how, out=tmp_path / "out.csv")
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    packed = predicted(scored.packed, raw, "--calibrate", how, out=tmp_path / "out.csv")
    assert np.corrcoef(packed, wanted)[0, 1] > 0.9


def test_data_are_found_beside_a_moved_run_or_given(scored: Scored, tmp_path: Path) -> None:
    away, raw = tmp_path / "away", write_lines(tmp_path / "raw", scored.lines)
    hidden, alone = tmp_path / "hidden", tmp_path / "alone.safetensors"
    shutil.copytree(scored.run_dir, away / "run")
    shutil.copy(scored.packed, alone)
    in_run = away / "run" / "packed" / "dense.safetensors"
    scored.data.rename(hidden)
    try:
        for model in (away / "run", in_run, alone):
            lost = dqrm_cpu("predict", model, raw, "--out", tmp_path / "lost.csv")
            assert lost.returncode == 1
            assert f"trained on {scored.data}" in lost.stderr and "--data DIR" in lost.stderr
            given = predicted(model, raw, "--data", hidden, out=tmp_path / "out.csv")
            np.testing.assert_allclose(given, scored.probabilities, rtol=1e-6, atol=1e-6)
        shutil.copytree(hidden, away / "data")
        for model in (away / "run", in_run):
            np.testing.assert_allclose(predicted(model, raw, out=tmp_path / "out.csv"), given, rtol=1e-6, atol=1e-6)
    finally:
        hidden.rename(scored.data)


def test_another_vocabulary_is_refused_by_name(scored: Scored, tmp_path: Path) -> None:
    (tmp_path / "other.tsv").write_text(criteo_text(700, seed=9))
    succeed("prepare", tmp_path / "other.tsv", "--format", "tsv", "--out", tmp_path / "other")
    raw = write_lines(tmp_path / "raw", scored.lines)
    for model in (scored.run_dir, scored.packed):
        for arguments in ((raw, "--data", tmp_path / "other"), (tmp_path / "other",)):
            output = dqrm_cpu("predict", model, *arguments, "--out", tmp_path / "out.csv")
            assert output.returncode == 1
            assert f"{tmp_path / 'other'} has another vocabulary than the model in {scored.run_dir}" in output.stderr
    given = tmp_path / "given"
    succeed("prepare", tmp_path / "other.tsv", "--format", "tsv", "--vocabulary", scored.data, "--out", given)
    assert predicted(scored.run_dir, given, out=tmp_path / "out.csv").size == 700


def test_data_that_do_not_say_what_ids_mean_are_warned_of_and_must_fit(scored: Scored, tmp_path: Path) -> None:
    """As earlier versions and other programs wrote them."""
    for name, rows in (("few", 300), ("many", 4000)):
        (tmp_path / f"{name}.tsv").write_text(criteo_text(rows, seed=9))
        succeed("prepare", tmp_path / f"{name}.tsv", "--format", "tsv", "--out", tmp_path / name)
        write_manifest(tmp_path / name, replace(read_manifest(tmp_path / name), identity=None))
    few = dqrm_cpu("predict", scored.run_dir, tmp_path / "few", "--out", tmp_path / "out.csv")
    assert few.returncode == 0
    assert f"warning: {tmp_path / 'few'} does not say which vocabulary its ids belong to" in few.stderr
    many = dqrm_cpu("predict", scored.run_dir, tmp_path / "many", "--out", tmp_path / "many.csv")
    assert (many.returncode, f"{tmp_path / 'many'} has tables of" in many.stderr) == (1, True)


def test_a_damaged_vocabulary_is_not_used(scored: Scored, tmp_path: Path) -> None:
    data, raw = tmp_path / "data", write_lines(tmp_path / "raw", scored.lines)
    shutil.copytree(scored.data, data)
    column = data / "vocabulary" / "003.npy"
    content = bytearray(column.read_bytes())
    content[-1] ^= 1
    column.write_bytes(content)
    output = dqrm_cpu("predict", scored.run_dir, raw, "--data", data, "--out", tmp_path / "out.csv")
    assert (output.returncode, str(column) in output.stderr) == (1, True)
    shutil.rmtree(data / "vocabulary")
    output = dqrm_cpu("predict", scored.run_dir, raw, "--data", data, "--out", tmp_path / "out.csv")
    assert f"{data / 'vocabulary'} is missing" in output.stderr


def test_hashed_ids_need_no_vocabulary(tmp_path: Path) -> None:
    text = criteo_text(700, seed=2)
    (tmp_path / "raw.tsv").write_text(text)
    hashed = ("--vocabulary", "hash", "--hash-rows", "50")
    succeed("prepare", tmp_path / "raw.tsv", "--format", "tsv", "--out", tmp_path / "data", *hashed)
    succeed("train", "--data", tmp_path / "data", "--run-dir", tmp_path / "run", *SMALL)
    raw = write_lines(tmp_path / "held-out", text.splitlines()[600:])
    found = predicted(tmp_path / "run", raw, out=tmp_path / "out.csv")
    parts = [
        predicted(tmp_path / "run", tmp_path / "data", "--part", part, out=tmp_path / "out.csv")
        for part in ("test", "validation")
    ]
    np.testing.assert_allclose(found, np.concatenate(parts), rtol=1e-6, atol=1e-8)


def test_a_run_on_generated_clicks_has_no_schema(scored: Scored, tmp_path: Path) -> None:
    sizes = ("--data.train-rows", "300", "--data.validation-rows", "100", "--data.test-rows", "100")
    succeed("train", "--run-dir", tmp_path / "run", "--model.table-rows", "40,3", *sizes, *SMALL)
    raw = write_lines(tmp_path / "raw", scored.lines)
    output = dqrm_cpu("predict", tmp_path / "run", raw, "--out", tmp_path / "out.csv")
    assert (output.returncode, "generated clicks, which have neither" in output.stderr) == (1, True)
    output = dqrm_cpu("predict", tmp_path / "run", scored.data, "--out", tmp_path / "out.csv")
    assert "another schema and vocabulary" in output.stderr


def test_an_exported_file_scores_rows_as_its_run_does(scored: Scored, tmp_path: Path) -> None:
    """Raw rows and prepared ones; its calibration, where it has one, is part of it."""
    raw, out = write_lines(tmp_path / "raw", scored.lines), tmp_path / "out.csv"
    for layout in ("dense", "sparse"):
        file = tmp_path / f"{layout}.safetensors"
        succeed("export", scored.run_dir, "--layout", layout, "--out", file)
        for rows in ((raw, "--data", scored.data), (scored.data, "--part", "validation")):
            found = predicted(file, *rows, out=out)
            np.testing.assert_allclose(found, scored.probabilities, rtol=1e-6, atol=1e-7)
    succeed("export", scored.run_dir, "--calibrate", "platt", "--out", tmp_path / "platt.safetensors")
    wanted = predicted(scored.run_dir, raw, "--calibrate", "platt", out=out)
    found = predicted(tmp_path / "platt.safetensors", raw, "--data", scored.data, out=out)
    np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=1e-7)


def test_evaluate_gives_a_file_the_metrics_of_its_run(
    scored: Scored, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def evaluated(*options: str) -> Any:
        capsys.readouterr()
        assert main(["evaluate", *options, "--data", str(scored.data), "--part", "all", "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    run, file, columns = str(scored.run_dir), tmp_path / "platt.safetensors", ("--group-by", "C1", "--slice-by", "C2")
    assert main(["export", run, "--calibrate", "platt", "--out", str(file)]) == 0
    found, wanted = evaluated(str(file), *columns), evaluated(run, *columns, "--calibrate", "platt")
    assert found["auc"] == pytest.approx(wanted["auc"], abs=1e-6)
    assert found["log_loss"] == pytest.approx(wanted["log_loss"], abs=1e-6)
    assert found["log_loss"] != pytest.approx(evaluated(run)["log_loss"], abs=1e-4)  # the calibration of the file
    assert found["examples"] == wanted["examples"] == 1400
    assert found["grouped"] == {**wanted["grouped"], "gauc": pytest.approx(wanted["grouped"]["gauc"], abs=1e-6)}
    assert [part["id"] for part in found["slices"]["values"]] == [part["id"] for part in wanted["slices"]["values"]]
    called = evaluate(file, scored.data, part="all", group_by="C1", slice_by="C2")
    metrics = json.loads(json.dumps(called.metrics.as_dict()))
    assert {name: found[name] for name in metrics} == metrics
    assert called.grouped is not None
    assert called.grouped.gauc == found["grouped"]["gauc"]
    assert called.slices is not None
    assert [part.value for part in called.slices[0]] == [part["id"] for part in found["slices"]["values"]]
    assert evaluated(str(scored.packed))["auc"] == pytest.approx(evaluated(run)["auc"], abs=1e-6)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--calibrate", "platt"], "has the calibration that it was exported with"),
        (["--checkpoint", "last"], "is of one checkpoint"),
        (["--quant.method", "dqrm"], "--quant.method: a model file is scored as it was exported"),
        (["--group-by", "nothing"], "there is no category 'nothing'"),
        (["--data", "nowhere"], "nowhere"),
    ],
)
def test_evaluate_says_what_a_file_does_not_take(
    scored: Scored, capsys: pytest.CaptureFixture[str], options: list[str], reason: str
) -> None:
    assert main(["evaluate", str(scored.packed), *options]) in (1, 2)
    assert reason in capsys.readouterr().err
    given: dict[str, Any] = {options[0].removeprefix("--").replace("-", "_"): options[1]}
    with pytest.raises(DqrmError, match=re.escape(reason.removeprefix("--"))):
        evaluate(scored.packed, **given)


def test_an_exported_file_can_score_in_integers(scored: Scored, tmp_path: Path) -> None:
    raw, file, out = write_lines(tmp_path / "raw", scored.lines), tmp_path / "model.safetensors", tmp_path / "out.csv"
    succeed("export", scored.run_dir, "--out", file)
    found = predicted(file, raw, "--data", scored.data, "--products", "int8", out=out)
    apart = np.abs(found - scored.probabilities).max()
    assert 1e-6 < apart < 0.01
    called = predict(file, raw, data=scored.data, products="int8")
    assert isinstance(called, np.ndarray)
    np.testing.assert_allclose(called, found, rtol=1e-8)  # the file has nine digits
    output = dqrm_cpu("predict", scored.run_dir, raw, "--products", "int8", "--out", tmp_path / "none.csv")
    assert (output.returncode, "takes a file that dqrm-cpu export wrote" in output.stderr) == (2, True)


def test_an_exported_file_names_rows_that_are_not_sound_as_its_run_does(scored: Scored, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    succeed("export", scored.run_dir, "--out", file)
    _, dense, ids = rows_of(scored.data, "validation")
    scorers = [load_scorer(find_model(path)) for path in (scored.run_dir, file)]
    for place, number in (((3, 7), -1), ((4, 25), 1 << 20), ((9, 2), np.nan), ((60, 12), np.inf)):
        bad_dense, bad_ids = dense[:70].copy(), ids[:70].copy()
        (bad_ids if isinstance(number, int) else bad_dense)[place] = number
        batch = Batch(torch.from_numpy(bad_dense), torch.from_numpy(bad_ids.T.copy()), None, torch.zeros(70))
        faults = []
        for scorer in scorers:
            with pytest.raises(BadBatchError) as error:
                scorer.logits(batch)
            faults.append((error.value.row, error.value.column, error.value.fault.partition(";")[0]))
            assert scorer.sound_rows(batch).tolist() == [row != place[0] for row in range(70)]
        assert faults[0] == faults[1]
