"""A signal to mpirun itself reaches the ranks, which save and end in order."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launching import clean_environ, end_group

pytestmark = [pytest.mark.mpi, pytest.mark.long]

BIN = Path(sys.executable).parent
SETTINGS = Path(__file__).parent.parent.parent / "scripts" / "mpivars.sh"
PATIENCE_S = 200
TRAIN = ["--model.table-rows", "40,3,500", "--data.train-rows", "100000", "--data.validation-rows", "200"]
TRAIN += ["--data.test-rows", "200", "--train.batch-size", "50", "--train.epochs", "100", "--train.log-every", "1"]
TRAIN += ["--train.checkpoint-every", "100000"]


@pytest.fixture
def mpirun(tmp_path: Path) -> Path:
    """The environment's launcher with the settings that the next installation gives it."""
    root = tmp_path / "environment"
    (root / "bin").mkdir(parents=True)
    for path in (*BIN.parent.iterdir(), *BIN.iterdir()):
        if path != BIN:
            (root / path.relative_to(BIN.parent)).symlink_to(path)
    (root / "bin" / SETTINGS.name).unlink(missing_ok=True)
    (root / "bin" / SETTINGS.name).symlink_to(SETTINGS)
    return root / "bin" / "mpirun"


def test_an_interrupted_mpirun_ends_with_a_checkpoint(mpirun: Path, tmp_path: Path) -> None:
    """Only the process that was started is signalled, as by `kill`; Ctrl-C reaches Hydra besides."""
    run_dir, log = tmp_path / "run", tmp_path / "run" / "metrics.jsonl"
    command: list[str | Path] = [
        mpirun,
        "-n",
        "2",
        sys.executable,
        "-m",
        "dqrm_cpu",
        "train",
        "--run-dir",
        run_dir,
        *TRAIN,
    ]
    with (tmp_path / "output").open("wb") as output:
        process = subprocess.Popen(
            command, env=clean_environ(), stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        end = time.monotonic() + PATIENCE_S
        while not (log.exists() and log.read_text().count("\n") > 3):
            assert process.poll() is None, (tmp_path / "output").read_text()
            assert time.monotonic() < end
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 128 + signal.SIGINT, (tmp_path / "output").read_text()
    finally:
        end_group(process)
    interrupted = json.loads((run_dir / "interrupted.json").read_text())
    assert interrupted["signal"] == "SIGINT"
    assert (run_dir / "checkpoints" / f"step-{interrupted['step']:09d}").is_dir()
    assert "everything is saved" in (tmp_path / "output").read_text()
