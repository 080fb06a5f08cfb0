"""A run is resumed on the rows that it was trained on, and on no others; two ranks train on prepared rows."""

import json
from pathlib import Path

import pytest

from dqrm_cpu.cli.main import main
from dqrm_cpu.data.store.manifest import read_manifest
from launching import run_mpi

SETTINGS = {
    "model.embedding-dim": "6",
    "model.bottom-mlp": "9,6",
    "model.top-mlp": "11,1",
    "train.batch-size": "64",
    "train.threads": "1",
    "train.log-every": "5",
}
OPTIONS = [text for key, value in SETTINGS.items() for text in (f"--{key}", value)]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("raw") / "train.txt"
    assert main(["data", "generate", str(path), "--rows", "1400"]) == 0
    return path


def prepared(raw: Path, out: Path, seed: int = 1) -> str:
    """The fingerprint of the data set, as a run names it."""
    assert main(["prepare", str(raw), "--format", "kaggle", "--seed", str(seed), "--out", str(out)]) == 0
    return f"prepared {read_manifest(out).digest()}"


def train(run_dir: Path, *options: str) -> int:
    return main(["train", "--run-dir", str(run_dir), *OPTIONS, *options])


def test_other_data_are_refused_with_both_fingerprints(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, other = prepared(raw, tmp_path / "ours"), prepared(raw, tmp_path / "other", seed=2)
    run_dir = tmp_path / "run"
    assert train(run_dir, "--data", str(tmp_path / "ours"), "--train.epochs", "1") == 0
    assert json.loads((run_dir / "environment.json").read_text())["data"] == ours
    capsys.readouterr()
    more = ["--resume", "auto", "--train.epochs", "2"]
    assert train(run_dir, "--data", str(tmp_path / "other"), *more) == 1
    stderr = capsys.readouterr().err
    assert ours in stderr
    assert other in stderr
    (tmp_path / "ours").rename(tmp_path / "moved")
    assert train(run_dir, "--data", str(tmp_path / "moved"), *more) == 0


def losses(run_dir: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.mpi
def test_two_ranks_train_on_prepared_rows(raw: Path, tmp_path: Path) -> None:
    prepared(raw, tmp_path / "data")
    options = ["--data.source", str(tmp_path / "data"), "--train.epochs", "1"]
    command = ["-m", "dqrm_cpu", "train", *OPTIONS, *options, "--run-dir", tmp_path / "mpi", "--comm.transport", "mpi"]
    run_mpi(command, 2, timeout_s=200).check()
    assert train(tmp_path / "simulated", *options, "--comm.simulated-ranks", "2") == 0
    assert json.loads((tmp_path / "mpi" / "result.json").read_text())["world_size"] == 2
    assert losses(tmp_path / "mpi") == losses(tmp_path / "simulated")
