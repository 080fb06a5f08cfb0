"""`train` and `evaluate` as a user runs them: real processes, one or two ranks, signals, mistakes."""

import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from commands import dqrm_cpu
from launching import World, clean_environ, run_world
from prestart import python
from several_commands import several_commands

SMALL = [
    *("--data.train-rows", "3000", "--data.validation-rows", "1000", "--data.test-rows", "1000"),
    *("--model.table-rows", "40,3,500", "--model.embedding-dim", "6", "--model.bottom-mlp", "9,6"),
    *("--model.top-mlp", "11,1", "--train.epochs", "1", "--train.batch-size", "50", "--train.log-every", "1"),
]
COMMAND = [sys.executable, "-m", "dqrm_cpu"]
METHODS = ("none", "dqrm")


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["phase"] == "train"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one") / "run"
    environ = clean_environ()
    command = [*python(environ), "-m", "dqrm_cpu", "train", *SMALL, "--run-dir", str(folder)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for word in ("AUC", "accuracy", "log loss", "FP32", "INT4", "ms", str(folder)):
        assert word in done.stdout
    return folder


def test_the_run_folder_is_complete(finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    assert result["world_size"] == 1
    assert result["bytes_per_step"] == 0
    assert result["ms_per_step"] > 0
    for part in ("validation", "test"):
        for which in ("best", "last"):
            assert {"auc", "accuracy", "log_loss", "normalized_entropy"} <= set(result[part][which])
    assert result["model_bytes"]["fp32"] > 4 * result["model_bytes"]["int4"]
    assert len(losses(finished)) == 60
    environment = json.loads((finished / "environment.json").read_text())
    assert environment["ranks"][0]["host"]
    assert environment["machine"]["cpu_model"]


def test_the_saved_settings_repeat_the_run(finished: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    done = dqrm_cpu("train", "--config", finished / "config.toml", "--run-dir", again)
    assert done.returncode == 0, done.stderr
    assert losses(again) == losses(finished)


def test_evaluate_repeats_what_training_reported(finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    for part, which in (("test", "best"), ("test", "last"), ("validation", "best")):
        done = dqrm_cpu("evaluate", "--run-dir", finished, "--part", part, "--checkpoint", which, "--json")
        found = json.loads(done.stdout)
        assert {name: found[name] for name in result[part][which]} == result[part][which]


def test_evaluate_uses_the_quantization_asked_for(finished: Path) -> None:
    found = {}
    for method in ("none", "dqrm"):
        done = dqrm_cpu("evaluate", "--run-dir", finished, "--quant.method", method, "--json")
        found[method] = json.loads(done.stdout)["log_loss"]
    assert found["none"] != found["dqrm"]


def test_a_second_run_does_not_overwrite_the_first(finished: Path) -> None:
    done = dqrm_cpu("train", *SMALL, "--run-dir", finished)
    assert done.returncode != 0
    assert "--resume auto" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_not_there_is_said(finished: Path, tmp_path: Path) -> None:
    for arguments, words in (
        (("evaluate", "--run-dir", finished, "--checkpoint", "step-7"), "step-7"),
        (("evaluate", "--run-dir", tmp_path / "nothing"), "nothing"),
        (("evaluate",), "dqrm-cpu evaluate RUN"),
        (("train", "--data", tmp_path / "criteo"), "criteo"),
        (("train", "--quant.scale-perod", "200"), "scale-period"),
        (("train", "--device", "cuda"), "GPU"),
        (("train", *SMALL, "--kernels", "ipex", "--run-dir", tmp_path / "ipex"), "make test-ipex"),
        (("train", "--model.table-rows", "2000000000", "--run-dir", tmp_path / "big"), "GB"),
    ):
        done = dqrm_cpu(*arguments)
        assert done.returncode in (1, 2), arguments
        assert words in done.stderr, (arguments, done.stderr)
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
    assert not (tmp_path / "big").exists()
    assert not (tmp_path / "ipex").exists()


@pytest.fixture(scope="module")
def worlds_of_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[World, Path]]:
    """What two ranks wrote over each transport, and where the run of each method is."""
    worlds = {}
    for transport in ("mpi", "gloo"):
        folder = tmp_path_factory.mktemp(transport)
        common = ["train", *SMALL, "--comm.transport", transport, "--run-dir"]
        runs = [[*common, str(folder / method), "--quant.method", method] for method in METHODS]
        worlds[transport] = run_world(transport, several_commands(*runs), 2, timeout_s=280).check(), folder
    return worlds


def assert_trained_as_one(world: World, folder: Path, finished: Path) -> None:
    """FP32 sums in another order: equal to rounding, which INT4 codes may amplify a little."""
    ranks = len(world.ranks)
    assert "AUC" in world.ranks[0].stdout
    assert [rank.stdout + rank.stderr for rank in world.ranks[1:]] == [""] * (ranks - 1)
    result = json.loads((folder / "result.json").read_text())
    assert result["world_size"] == ranks
    assert result["bytes_per_step"] > 0
    assert len(json.loads((folder / "environment.json").read_text())["ranks"]) == ranks
    assert losses(folder) == pytest.approx(losses(finished), rel=2e-3)


@pytest.mark.mpi
@pytest.mark.parametrize("transport", ["mpi", "gloo"])
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_train_the_model_of_one(
    transport: str, ranks: int, finished: Path, worlds_of_two: dict[str, tuple[World, Path]], tmp_path: Path
) -> None:
    if ranks == 2:
        world, folder = worlds_of_two[transport]
        assert_trained_as_one(world, folder / "dqrm", finished)
        return
    folder = tmp_path / "run"
    arguments = ["-m", "dqrm_cpu", "train", *SMALL, "--run-dir", folder, "--comm.transport", transport]
    assert_trained_as_one(run_world(transport, arguments, ranks, timeout_s=280).check(), folder, finished)


@pytest.mark.mpi
@pytest.mark.parametrize("method", METHODS)
def test_transports_and_simulated_ranks_agree_to_the_bit(
    method: str, worlds_of_two: dict[str, tuple[World, Path]], tmp_path: Path
) -> None:
    simulated = ("--run-dir", tmp_path / "run", "--comm.simulated-ranks", 2, "--train.threads", 1)
    assert dqrm_cpu("train", *SMALL, "--quant.method", method, *simulated).returncode == 0
    runs = [folder / method for _, folder in worlds_of_two.values()]
    assert [losses(run) for run in runs] == [losses(tmp_path / "run")] * 2


@pytest.mark.mpi
def test_a_mistake_is_told_once(tmp_path: Path) -> None:
    world = run_world("mpi", ["-m", "dqrm_cpu", "train", "--quant.scale-perod", "3"], 2)
    assert world.returncode != 0
    assert sum("scale-period" in rank.stderr for rank in world.ranks) == 1
    (tmp_path / "config.toml").write_text("")
    world = run_world("mpi", ["-m", "dqrm_cpu", "train", *SMALL, "--run-dir", tmp_path], 2)
    assert world.returncode != 0
    assert sum("--resume auto" in rank.stderr for rank in world.ranks) == 1


@pytest.mark.mpi
def test_ranks_with_different_settings_are_refused(tmp_path: Path) -> None:
    script = """
import os, sys
from dqrm_cpu.cli.main import main
sys.exit(main([*sys.argv[1:], os.environ["PMI_RANK"]]))
"""
    world = run_world("mpi", ["-c", script, "train", *SMALL, "--run-dir", tmp_path / "run", "--seed"], 2)
    assert world.returncode != 0
    assert "seed: 0 on rank 0, 1 on rank 1" in world.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.mpi
def test_ranks_with_different_folders_are_refused(tmp_path: Path) -> None:
    script = """
import os, sys
from dqrm_cpu.cli.main import main
sys.exit(main([*sys.argv[1:-1], sys.argv[-1] + os.environ["PMI_RANK"]]))
"""
    world = run_world("mpi", ["-c", script, "train", *SMALL, "--run-dir", tmp_path / "run"], 2)
    assert world.returncode != 0
    assert f"{tmp_path}/run0 on rank 0, {tmp_path}/run1 on rank 1" in world.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_says_how_to_resume(number: int, status: int, tmp_path: Path) -> None:
    arguments = ["train", *SMALL, "--train.epochs", "500", "--run-dir", str(tmp_path / "run")]
    environ = clean_environ()
    command = [*python(environ), "-m", "dqrm_cpu", *arguments]
    process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    rows = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (rows.exists() and rows.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    assert f"dqrm-cpu train --run-dir {tmp_path / 'run'} --resume auto" in errors
    resumed = dqrm_cpu("train", "--run-dir", tmp_path / "run", "--resume", "auto", "--train.epochs", "1")
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming from" in resumed.stderr


def test_a_closed_terminal_saves_the_run(tmp_path: Path) -> None:
    """The kernel sends SIGHUP, and whatever is written to the terminal from then on fails."""
    folder = tmp_path / "run"
    master, slave = pty.openpty()

    def take_the_terminal() -> None:
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

    environ = clean_environ()
    options = [*SMALL, "--train.epochs", "1000", "--kernels", "torch", "--run-dir", str(folder)]
    command = [*python(environ), "-m", "dqrm_cpu", "train", *options]
    process = subprocess.Popen(
        command, env=environ, stdin=slave, stdout=slave, stderr=slave, preexec_fn=take_the_terminal
    )
    os.close(slave)
    seen = b""
    while b"validation" not in seen:
        seen += os.read(master, 4096)
    os.close(master)
    assert process.wait(timeout=60) == 128 + signal.SIGHUP
    mark = json.loads((folder / "interrupted.json").read_text())
    assert mark["signal"] == "SIGHUP"
    assert (folder / "checkpoints" / f"step-{mark['step']:09d}" / "state.json").exists()


def test_standard_streams_that_are_closed_are_no_reason_to_fail(tmp_path: Path) -> None:
    script = 'exec "$@" <&- >&- 2>&-'
    command = ["sh", "-c", script, "sh", *COMMAND, "data", "generate", str(tmp_path / "rows.txt"), "--rows", "10"]
    assert subprocess.run(command, check=False, timeout=60).returncode == 0
    assert len((tmp_path / "rows.txt").read_text().splitlines()) == 10
