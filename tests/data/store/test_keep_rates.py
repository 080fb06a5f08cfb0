"""Probabilities of models that saw only a share of the rows without a click are those of all rows."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dqrm_cpu.cli.main import main
from dqrm_cpu.comm.transport import SingleTransport
from dqrm_cpu.config import Config, DataConfig
from dqrm_cpu.config.load import load_run_config
from dqrm_cpu.data.source import open_data
from dqrm_cpu.errors import DataError
from dqrm_cpu.export.model_files import write_model
from dqrm_cpu.export.packed_model import read_packed
from dqrm_cpu.export.read import load_packed
from dqrm_cpu.kernels.select import select_kernels
from dqrm_cpu.metrics.click import ClickAccumulator, ClickMetrics, click_metrics
from dqrm_cpu.model.correction import keep_rate_correction
from dqrm_cpu.model.dlrm import Dlrm
from dqrm_cpu.predict.scorer import load_scorer
from dqrm_cpu.predict.trained_model import find_model
from dqrm_cpu.train.checkpoint_folder import find_checkpoint
from dqrm_cpu.train.evaluation_notes import calibration_warning
from dqrm_cpu.train.session import Session, trained_session
from stored import config_of, write_generated
from tiny import CPU, tiny_config

TABLES = (40, 3, 500)
KEPT = 0.2
OPTIONS = {
    "data.reshuffle": "true",
    "model.embedding-dim": "6",
    "model.bottom-mlp": "9,6",
    "model.top-mlp": "11,1",
    "quant.embedding-bits": "8",
    "quant.mlp-bits": "32",
    "train.batch-size": "128",
    "train.epochs": "3",
    "train.learning-rate": "0.3",
    "train.decay-start-step": "500",
    "train.decay-steps": "560",
    "train.threads": "1",
}
"""Enough steps for probabilities that are right among the rows that the model sees: else no correction mends them."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many held-out rows: of 15,000 clicks, chance alone moves the calibration by less than 1 %."""
    folder = tmp_path_factory.mktemp("generated")
    write_generated(folder, TABLES, {"train": 120_000, "validation": 60_000, "test": 60_000}, every=20)
    return folder


@pytest.fixture(scope="module")
def run_dir(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that sees a fifth of the rows without a click."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    options = {**OPTIONS, "data": str(data), "data.sub-sample-rate": str(1 - KEPT)}
    texts = [text for key, value in options.items() for text in (f"--{key}", value)]
    assert main(["train", "--run-dir", str(folder), *texts]) == 0
    return folder


def evaluated(run_dir: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[dict[str, Any], str]:
    """The figures of `evaluate`, and what it said beside them."""
    capsys.readouterr()
    assert main(["evaluate", "--run-dir", str(run_dir), "--json", *options]) == 0
    captured = capsys.readouterr()
    document: dict[str, Any] = json.loads(captured.out)
    return document, captured.err


def opened(run_dir: Path) -> tuple[Config, Session]:
    (config, _), _ = load_run_config(run_dir / "config.toml", {}, None)
    checkpoint = find_checkpoint(run_dir / "checkpoints", "best")
    return config, trained_session(config, checkpoint, SingleTransport(), lambda text: None)


@given(st.floats(1e-4, 1 - 1e-4), st.floats(1e-3, 1), st.floats(1e-3, 1))
def test_the_correction_turns_the_odds_of_some_rows_into_those_of_others(
    p: float, trained: float, scored: float
) -> None:
    """With probability p of a click among all rows, Bayes' rule gives that among rows that kept some of the others."""

    def among(kept: float) -> float:
        return p / (p + (1 - p) * kept)

    q, expected = among(trained), among(scored)
    logit = math.log(q / (1 - q)) + keep_rate_correction(trained, scored)
    assert 1 / (1 + math.exp(-logit)) == pytest.approx(expected, rel=1e-9)
    if scored == 1:
        assert q / (q + (1 - q) / trained) == pytest.approx(p, rel=1e-9)


def test_of_clicks_alone_nothing_is_corrected() -> None:
    assert keep_rate_correction(0.0) == 0.0


def test_a_model_that_saw_a_fifth_of_the_other_rows_predicts_as_many_clicks_as_there_are(run_dir: Path) -> None:
    result = json.loads((run_dir / "result.json").read_text())
    for part in ("validation", "test"):
        corrected = result[part]["best"]
        assert corrected["calibration"] == pytest.approx(1, abs=0.02)
        assert corrected["normalized_entropy"] < 1


def test_without_the_correction_it_predicts_twice_as_many(run_dir: Path) -> None:
    _, session = opened(run_dir)
    scored = session.evaluate.predictions(session.loaders.test)
    corrected = scored.compute()
    before = click_metrics(scored.logits - np.float32(math.log(KEPT)), scored.clicks)
    assert before.calibration > 2
    assert corrected.calibration == pytest.approx(1, abs=0.02)
    assert corrected.log_loss < before.log_loss - 0.1
    assert corrected.auc == pytest.approx(before.auc, abs=1e-6)


def test_evaluate_says_what_the_run_said(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, said = evaluated(run_dir, capsys)
    expected = json.loads((run_dir / "result.json").read_text())["test"]["best"]
    assert {key: found[key] for key in expected} == expected
    assert "warning" not in said


def test_training_rows_are_scored_as_they_are_stored(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No row is left out, so that the correction is the same as that of test rows."""
    assert evaluated(run_dir, capsys, "--part", "train")[0]["calibration"] == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("layout", ["dense", "sparse"])
def test_a_packed_model_gives_the_corrected_probabilities(run_dir: Path, layout: str) -> None:
    config, session = opened(run_dir)
    expected = session.evaluate.predictions(session.loaders.test).logits.copy()
    path = run_dir / "packed" / f"{layout}.safetensors"
    assert read_packed(path).is_corrected
    load_packed(path, session.model, config.quant)
    assert session.model.logit_correction() == 0
    read_back = session.evaluate.predictions(session.loaders.test, quantized=False).logits
    np.testing.assert_allclose(read_back, expected, atol=2e-5)


@pytest.mark.parametrize("packed", [False, True])
def test_predict_gives_the_corrected_probabilities(run_dir: Path, packed: bool) -> None:
    _, session = opened(run_dir)
    (batch,) = session.loaders.test.copies(0, 1)[0]
    expected = session.evaluate.predictions(session.loaders.test).logits[: batch.size]
    scorer = load_scorer(find_model(run_dir / "packed" / "dense.safetensors" if packed else run_dir))
    np.testing.assert_allclose(scorer.logits(batch), expected, rtol=0, atol=2e-5)


def test_compress_scores_and_writes_the_corrected_model(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model.safetensors"
    capsys.readouterr()
    assert main(["compress", str(run_dir), "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["calibration"] == pytest.approx(1, abs=0.02)
    assert main(["compress", "--verify", str(out)]) == 0
    assert "training saw 0.2 of those without a click" in capsys.readouterr().out


@pytest.mark.parametrize("bias_bits", [4, 32])
def test_the_bias_of_a_packed_model_is_corrected_once(
    tmp_path: Path, bias_bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tiny_config(quant={"mlp_bias_bits": bias_bits})
    config = replace(plain, data=replace(plain.data, negative_keep_rate=0.1))
    kernels, scale = select_kernels("auto", CPU), torch.full((3,), 0.01)
    model = Dlrm(config, kernels, CPU)
    model.initialize_(1)
    *_, (_, last, _) = model.mlp_layers()
    expected = float(last.bias[0]) + math.log(0.1)
    write_model(tmp_path / "now", config, model, scale, "dense")
    model.is_corrected = True
    monkeypatch.setattr("dqrm_cpu.export.write.CORRECTED", "unknown")
    write_model(tmp_path / "earlier", config, model, scale, "dense")  # as it was trained, and without the mark
    monkeypatch.undo()
    assert [read_packed(tmp_path / name).is_corrected for name in ("now", "earlier")] == [True, False]
    for name in ("now", "earlier"):
        load_packed(tmp_path / name, model, config.quant)
        assert float(last.bias[0]) == pytest.approx(expected, rel=1e-6)
    write_model(tmp_path / "again", config, model, scale, "dense")
    load_packed(tmp_path / "again", model, config.quant)
    assert float(last.bias[0]) == pytest.approx(expected, rel=1e-6)


def test_each_part_says_what_it_kept(data: Path) -> None:
    rates: dict[str, Any] = {"sub_sample_rate": 0.75, "negative_keep_rate": 0.4, "evaluation_keep_rate": 0.5}
    parts = open_data(config_of(data, **rates))
    assert parts.train.keep_rate == pytest.approx(0.1)
    assert (parts.validation.keep_rate, parts.test.keep_rate) == (0.5, 0.5)


def test_rows_that_were_thinned_alike_need_no_correction(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """To say that test rows kept a fifth of those without a click takes the correction back, and is wrong here."""
    found, said = evaluated(run_dir, capsys, "--data.evaluation-keep-rate", str(KEPT))
    _, session = opened(run_dir)
    scored = session.evaluate.predictions(session.loaders.test)
    uncorrected = ClickAccumulator()
    uncorrected.add(torch.from_numpy(scored.logits - np.float32(math.log(KEPT))), torch.from_numpy(scored.clicks))
    assert found["calibration"] == pytest.approx(uncorrected.compute().calibration, rel=1e-5)
    assert "clicks are predicted on test rows for each that there was" in said


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--data.evaluation-keep-rate", "0.2"), "test"),
        (("--part", "all", "--data.negative-keep-rate", "0.2"), "train"),
        (("--part", "all"), None),
    ],
)
def test_a_calibration_is_only_for_rows_that_kept_the_same_share(
    run_dir: Path, options: tuple[str, ...], part: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--run-dir", str(run_dir), "--calibrate", "platt", *options]) == (2 if part else 0)
    said = f"kept 1 of those without a click (data.evaluation_keep_rate), and the {part} rows kept 0.2"
    assert (said in capsys.readouterr().err) == bool(part)


@pytest.mark.parametrize("key", ["negative_keep_rate", "evaluation_keep_rate"])
def test_generated_rows_are_all_there(key: str) -> None:
    with pytest.raises(DataError, match=f"data.{key} works on prepared rows"):
        open_data(tiny_config(data={key: 0.5}))


@pytest.mark.parametrize(
    ("calibration", "settings", "reason"),
    [
        (2.34, {}, r"2\.34 clicks are predicted .* --data\.negative-keep-rate says what share is left; otherwise"),
        (2.34, {"negative_keep_rate": 0.5}, r"what share is left \(now 0\.5\)"),
        (0.2, {"negative_keep_rate": 0.5}, r"say so with --data\.evaluation-keep-rate 0\.5"),
        (0.2, {}, "train on newer"),
        (0.2, {"source": "synthetic"}, "there was: the model ranks better than it predicts"),
    ],
)
def test_probabilities_that_are_far_off_are_told_with_the_likely_reason(
    calibration: float, settings: dict[str, Any], reason: str
) -> None:
    data = replace(DataConfig(source="a"), **settings)
    metrics = ClickMetrics(0.7, 0.8, 0.5, 0.9, calibration, 1000)
    warning = calibration_warning(metrics, "validation", data)
    assert warning is not None
    assert re.search(reason, warning)
    assert calibration_warning(replace(metrics, examples=999), "validation", data) is None


@pytest.mark.parametrize("calibration", [0.84, 1.0, 1.2, math.nan])
def test_probabilities_that_are_nearly_right_or_unknown_are_not(calibration: float) -> None:
    assert calibration_warning(ClickMetrics(0.7, 0.8, 0.5, 0.9, calibration, 1000), "test", DataConfig()) is None
