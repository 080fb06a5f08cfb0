"""An ensemble is the mean of runs that could have been trained alone, to the bit, and goes on wherever it was ended."""

import io
import json
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from commands import dqrm_cpu
from dqrm_cpu.comm.transport import SingleTransport
from dqrm_cpu.config import Config
from dqrm_cpu.config.load import check_config
from dqrm_cpu.data.source import open_data
from dqrm_cpu.errors import CheckpointError, ConfigError
from dqrm_cpu.metrics.click import click_metrics
from dqrm_cpu.train.checkpoint_folder import checkpoints_to_score, find_checkpoint
from dqrm_cpu.train.ensemble import require_kind_of_run, train_ensemble
from dqrm_cpu.train.progress import Progress
from dqrm_cpu.train.run import RunRequest
from dqrm_cpu.train.run_folder import read_result
from dqrm_cpu.train.run_place import member_folder, members_of
from dqrm_cpu.train.session import trained_session
from dqrm_cpu.train.state import Interrupted, Result
from launching import clean_environ, run_world
from prestart import kill, python
from several_commands import several_commands
from test_resume import SignalAt, assert_same_run, run
from tiny import tiny_config

_CONFIG = tiny_config(
    train={"evaluate_every": 15, "checkpoint_every": 6, "learning_rate": 0.3, "threads": 1},
    data={"train_rows": 1000, "validation_rows": 200, "test_rows": 200},
)
PAIR = replace(_CONFIG, ensemble=2, kernels="torch")  # which take no time to load
OF_THE_PROCESS = ("ms_per_step", "score_us_per_row", "members", "crc32")


def run_ensemble(
    config: Config, folder: Path, resume: bool = False, progress: Progress | None = None
) -> Result | Interrupted:
    request = RunRequest(folder, resume, {}, io.StringIO(), open_progress=lambda *_: progress or Progress())
    return train_ensemble(config, request, SingleTransport())


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an ensemble of two that nothing interrupted."""
    folder = tmp_path_factory.mktemp("pair") / "run"
    assert isinstance(run_ensemble(PAIR, folder), Result)
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The folders of two runs with the settings of the members, each trained by itself."""
    folder = tmp_path_factory.mktemp("alone")
    for seed in (0, PAIR.seed + 1):
        config = replace(PAIR, ensemble=1, weights_seed=seed)
        assert isinstance(run(config, folder / str(seed)), Result)
    return [folder / "0", folder / str(PAIR.seed + 1)]


def assert_same_ensemble(found: Path, expected: Path) -> None:
    for number in (1, 2):
        assert_same_run(PAIR.member(number), member_folder(found, number), member_folder(expected, number))
    ours, theirs = (read_result(folder) or {} for folder in (found, expected))
    assert [{**ours, **dict.fromkeys(OF_THE_PROCESS)}] == [{**theirs, **dict.fromkeys(OF_THE_PROCESS)}]


def logits_of(run_dir: Path, which: str) -> tuple[np.ndarray, np.ndarray]:
    checkpoint = find_checkpoint(run_dir / "checkpoints", which)
    session = trained_session(PAIR, checkpoint, SingleTransport(), print)
    found = session.evaluate.predictions(session.loaders.test)
    return found.logits, found.clicks


def test_members_are_the_runs_that_each_would_be_alone(pair: Path, alone: list[Path]) -> None:
    for number, folder in enumerate(alone, 1):
        assert_same_run(PAIR.member(number), member_folder(pair, number), folder)
    first, second = (read_result(folder) or {} for folder in alone)
    assert first["test"] != second["test"]


@pytest.mark.mpi
def test_two_ranks_train_the_members_that_they_would_train_alone(pair: Path, tmp_path: Path) -> None:
    train, both, second = ("train", "--config", pair / "config.toml"), tmp_path / "both", tmp_path / "second"
    alone = ("--ensemble", 1, "--weights-seed", PAIR.seed + 1, "--run-dir", second)
    commands = several_commands((*train, "--run-dir", both), (*train, *alone))
    run_world("mpi", commands, ranks=2, timeout_s=120).check()
    assert_same_run(PAIR.member(2), member_folder(both, 2), second)
    result = Result.from_dict(read_result(both) or {}, both)
    found = json.loads(dqrm_cpu("evaluate", both, "--json").stdout)  # by one process
    assert found["auc"] == pytest.approx(result.test.best.auc, abs=1e-9)
    assert [member.test.examples for member in result.members] == [PAIR.data.test_rows] * 2


@pytest.mark.parametrize("which", ["best", "last"])
def test_a_score_is_the_mean_of_the_logits_of_runs_trained_apart(pair: Path, alone: list[Path], which: str) -> None:
    (first, clicks), (second, _) = (logits_of(folder, which) for folder in alone)
    mean = ((first.astype(np.float64) + second) / 2).astype(np.float32)
    wanted = click_metrics(mean, clicks)
    found = (read_result(pair) or {})["test"]
    assert isinstance(found, dict)
    assert {name: found[which][name] for name in ("auc", "log_loss", "calibration", "examples")} == {
        name: getattr(wanted, name) for name in ("auc", "log_loss", "calibration", "examples")
    }
    separate = [click_metrics(logits, clicks).log_loss for logits in (first, second)]
    assert wanted.log_loss <= np.mean(separate)  # which no mean of logits exceeds


def test_an_ensemble_of_one_is_the_run_itself() -> None:
    single = replace(PAIR, ensemble=1)
    assert single.member(1) == single == PAIR.member(1)


def test_the_result_says_what_members_were_and_what_they_cost(pair: Path, alone: list[Path]) -> None:
    document = read_result(pair) or {}
    result = Result.from_dict(document, pair)
    apart = [Result.from_dict(read_result(folder) or {}, folder) for folder in alone]
    assert [member.seed for member in result.members] == [PAIR.seed, PAIR.seed + 1]
    assert [member.test.auc for member in result.members] == [one.test.best.auc for one in apart]
    assert [member.best_step for member in result.members] == [one.best_step for one in apart]
    assert result.steps == sum(one.steps for one in apart)
    assert result.packed_files is not None
    assert result.packed_files.dense == sum(one.packed_files.dense for one in apart if one.packed_files)
    assert result.model_bytes.packed == 2 * apart[0].model_bytes.packed
    assert result.score_us_per_row > 0
    assert Result.from_dict(json.loads(json.dumps(result.as_dict())), pair) == result


def test_interrupted_in_the_second_member_and_resumed(pair: Path, tmp_path: Path) -> None:
    """The first member is left as it is."""
    shutil.copytree(pair, tmp_path / "run")
    shutil.rmtree(member_folder(tmp_path / "run", 2))
    (tmp_path / "run" / "result.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in member_folder(tmp_path / "run", 1).rglob("*") if path.is_file()}
    outcome = run_ensemble(PAIR, tmp_path / "run", resume=True, progress=SignalAt(10, signal.SIGINT))
    assert isinstance(outcome, Interrupted)
    assert (outcome.run_dir, outcome.member, outcome.step) == (tmp_path / "run", 2, 10)
    assert isinstance(run_ensemble(PAIR, tmp_path / "run", resume=True), Result)
    assert_same_ensemble(tmp_path / "run", pair)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_request_to_stop_at_the_end_of_a_member_starts_no_other(pair: Path, tmp_path: Path) -> None:
    steps = PAIR.data.train_rows // PAIR.train.batch_size + 1
    outcome = run_ensemble(PAIR, tmp_path / "run", progress=SignalAt(steps, signal.SIGTERM))
    assert isinstance(outcome, Interrupted)
    assert (outcome.member, outcome.step) == (1, steps)
    assert len(members_of(tmp_path / "run")) == 1
    assert isinstance(run_ensemble(PAIR, tmp_path / "run", resume=True), Result)
    assert_same_ensemble(tmp_path / "run", pair)


def test_killed_in_the_second_member_and_resumed_by_the_command(pair: Path, tmp_path: Path) -> None:
    environ, folder = clean_environ(), tmp_path / "run"
    arguments = ["--config", str(pair / "config.toml"), "--run-dir", str(folder)]
    command = [*python(environ), "-m", "dqrm_cpu", "train", *arguments]
    process = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(member_folder(folder, 2).glob("checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.002)
    kill(process)
    resumed = dqrm_cpu("train", "--run-dir", folder, "--resume", "auto")
    assert resumed.returncode == 0, resumed.stderr
    assert "member 1 of 2 is trained" in resumed.stderr
    assert_same_ensemble(folder, pair)
    for words in ("member 2, test, best", "mean of 2", "64 steps of 2 models", "us a row by all", str(folder)):
        assert words in resumed.stdout


def test_an_ensemble_grows(pair: Path, tmp_path: Path) -> None:
    shutil.copytree(pair, tmp_path / "run")
    grown = replace(PAIR, ensemble=3)
    result = run_ensemble(grown, tmp_path / "run", resume=True)
    assert isinstance(result, Result)
    assert [member.seed for member in result.members] == [1, 2, 3]
    assert [member.test for member in result.members[:2]] == [
        member.test for member in Result.from_dict(read_result(pair) or {}, pair).members
    ]
    with pytest.raises(ConfigError, match=r"an ensemble of 3 members, --ensemble is 2"):
        require_kind_of_run(tmp_path / "run", 2)


def test_folders_of_another_kind_are_refused(pair: Path, alone: list[Path]) -> None:
    with pytest.raises(ConfigError, match=r"a run of one model, --ensemble is 2"):
        require_kind_of_run(alone[0], 2)
    with pytest.raises(ConfigError, match="holds one model"):
        checkpoints_to_score(alone[0], "best", 2)
    with pytest.raises(ConfigError, match="--checkpoint is best or last, not step-000000010"):
        checkpoints_to_score(pair, "step-000000010", 2)
    with pytest.raises(CheckpointError, match="members/3 has no checkpoint yet"):
        checkpoints_to_score(pair, "best", 3)
    with pytest.raises(ConfigError, match=f"name one of them, such as {member_folder(pair, 1)}"):
        find_checkpoint(pair / "checkpoints", "best")
    with pytest.raises(ConfigError, match="holds a run already"):
        run_ensemble(PAIR, pair)


@pytest.mark.parametrize("command", [("report",), ("compress",), ("train", "--init-from")])
def test_commands_of_one_model_name_its_members(command: tuple[str, ...], pair: Path, tmp_path: Path) -> None:
    out = ("--run-dir", tmp_path / "run") if command[0] == "train" else ()
    done = dqrm_cpu(*command, pair, *out)
    assert done.returncode == 2, done.stderr
    assert f"name one of them, such as {member_folder(pair, 1)}" in done.stderr
    assert "Traceback" not in done.stderr


def test_evaluate_scores_all_members_or_the_first_ones(pair: Path) -> None:
    result = Result.from_dict(read_result(pair) or {}, pair)
    for options, wanted in (
        ((), result.test.best),
        (("--checkpoint", "last", "--part", "validation"), result.validation.last),
        (("--ensemble", "1"), result.members[0].test),
    ):
        done = dqrm_cpu("evaluate", pair, *options, "--json")
        found = json.loads(done.stdout)
        assert (found["auc"], found["log_loss"]) == (wanted.auc, wanted.log_loss), done.stderr
    done = dqrm_cpu("evaluate", pair, "--calibrate", "platt")
    assert f"{pair} on 200 test rows, calibrated (platt)" in done.stdout, done.stderr


def test_members_have_the_same_rows() -> None:
    """Generated ones follow the seed, whatever the members draw."""
    assert open_data(PAIR.member(1)).fingerprint == open_data(PAIR.member(2)).fingerprint
    assert PAIR.member(1).training_seed != PAIR.member(2).training_seed


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"init_from": "runs/a"}, "init_from gives all the same"),
        ({"seed": 2**32 - 1}, "counts seeds up to 4,294,967,296"),
    ],
)
def test_settings_that_make_no_ensemble(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_config(replace(PAIR, **changes))  # type: ignore[arg-type]
