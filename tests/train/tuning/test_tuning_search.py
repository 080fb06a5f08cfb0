"""The search before training as a command, to the run's config.toml: shown, interrupted, resumed, refused."""

import io
import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from click_rates import write_click_rates
from commands import CommandOutput, dqrm_cpu
from dqrm_cpu.config import load_config
from dqrm_cpu.config.schema import flatten
from dqrm_cpu.errors import ConfigError
from dqrm_cpu.train.progress import open_progress
from dqrm_cpu.train.run import RunRequest
from dqrm_cpu.train.tuning import search
from dqrm_cpu.train.tuning.record import read_record, record_path
from launching import clean_environ
from prestart import kill, python
from searches import SHORT, SMALL_MODEL, options, record_of, write_small_data

RECORD = "tuning.json"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_data(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CommandOutput]:
    """A run folder that nothing disturbed, and what its command wrote."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    output = dqrm_cpu(*options(data, folder))
    assert output.returncode == 0, output.stderr
    return folder, output


def test_the_configuration_is_what_was_chosen(finished: tuple[Path, CommandOutput]) -> None:
    run_dir, _ = finished
    record = record_of(run_dir)
    assert record.chosen is not None
    values = flatten(load_config(None, run_dir / "config.toml", {}))
    assert record.trials[record.chosen].values.items() <= values.items()
    untouched = {key: value for key, value in record.settings.items() if key not in record.searched}
    assert untouched == {key: list(v) if isinstance(v, tuple) else v for key, v in values.items() if key in untouched}
    last = [trial.scores[-1] for trial in record.trials if len(trial.scores) == len(record.rounds)]
    best = record.trials[record.chosen].scores[-1]
    assert best is not None
    assert best.auc == max(metrics.auc for metrics in last if metrics is not None)


def test_the_trials_are_shown(finished: tuple[Path, CommandOutput]) -> None:
    run_dir, output = finished
    record = record_of(run_dir)
    lines = output.stderr.splitlines()
    (head,) = [number for number, line in enumerate(lines) if line.split()[:2] == ["trial", "optimizer"]]
    assert "AUC, 20 steps  AUC, 40 steps" in lines[head]
    rows = lines[head + 1 : head + 5]
    for number, (row, trial) in enumerate(zip(rows, record.trials, strict=True)):
        aucs = [f"{metrics.auc:.4f}" for metrics in trial.scores if metrics is not None]
        assert row.split()[:2] == [str(number + 1), trial.values["train.optimizer"]]
        assert row.split()[5 : 5 + len(aucs)] == aucs
        assert row.endswith("chosen") == (number == record.chosen)
    assert lines[head + 5].startswith("chosen: optimizer ")
    assert str(record_path(run_dir)) in lines[head + 5]


def test_the_same_seed_finds_the_same(data: Path, finished: tuple[Path, CommandOutput], tmp_path: Path) -> None:
    again = dqrm_cpu(*options(data, tmp_path / "run"))
    assert again.returncode == 0
    assert (tmp_path / "run" / RECORD).read_bytes() == (finished[0] / RECORD).read_bytes()
    assert (tmp_path / "run" / "config.toml").read_bytes() == (finished[0] / "config.toml").read_bytes()


def test_a_killed_search_goes_on_and_chooses_the_same(
    data: Path, finished: tuple[Path, CommandOutput], tmp_path: Path
) -> None:
    """Killed in the middle of a trial: that one begins anew, those before are not run again."""
    run_dir = tmp_path / "run"
    environ = clean_environ()
    command = [*python(environ), "-m", "dqrm_cpu", *map(str, options(data, run_dir))]
    process = subprocess.Popen(command, env=environ, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not _scores(run_dir) and time.monotonic() < deadline:
        time.sleep(0.001)
    kill(process)
    done = _scores(run_dir)
    assert done
    assert not (run_dir / "result.json").exists()
    output = dqrm_cpu(*options(data, run_dir, "--resume", "auto"))
    assert output.returncode == 0, output.stderr
    assert output.stderr.count(" steps  optimizer ") == 6 - done
    for name in (RECORD, "config.toml"):
        assert (run_dir / name).read_bytes() == (finished[0] / name).read_bytes()


def _scores(run_dir: Path) -> int:
    record = read_record(run_dir) if record_path(run_dir).exists() else None
    return 0 if record is None else sum(len(trial.scores) for trial in record.trials)


class _SignalAt(io.StringIO):
    """A terminal that sends this process a signal when a text appears on it."""

    def __init__(self, text: str, number: int) -> None:
        super().__init__()
        self._text, self._number = text, number

    def write(self, text: str) -> int:
        if self._text in text:
            os.kill(os.getpid(), self._number)
        return super().write(text)


@pytest.mark.parametrize("at", ["trial 1 of 4", "trial 3 of 4, 20 steps"])
def test_a_signal_ends_the_search_and_says_how_to_go_on(
    at: str, data: Path, finished: tuple[Path, CommandOutput], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"

    def stopping(*arguments: Any) -> RunRequest:
        stream = _SignalAt(at, signal.SIGTERM)
        return replace(
            RunRequest(*arguments), open_progress=lambda first, total, _: open_progress(first, total, stream)
        )

    monkeypatch.setattr("dqrm_cpu.api.training.RunRequest", stopping)
    stopped = dqrm_cpu(*options(data, run_dir))
    assert stopped.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM while settings were tried out" in stopped.stderr
    assert "--resume auto" in stopped.stderr
    assert not (run_dir / "config.toml").exists()
    monkeypatch.undo()
    for refused, words in (
        (options(data, run_dir), "holds a search; go on with it by --resume auto"),
        (["train", "--data", data, "--run-dir", run_dir, "--resume", "auto"], "give --tune 4"),
        (options(data, run_dir, "--resume", "auto", tune=5), "has --tune 4"),
        (options(data, run_dir, "--resume", "auto", "--seed", 2), "seed 1 there, 2 now"),
        (options(data, run_dir, "--resume", "auto", "--train.learning-rate", 1), "tries values of train.learning_rate"),
    ):
        output = dqrm_cpu(*refused)
        assert output.returncode == 2
        assert words in output.stderr
    assert dqrm_cpu(*options(data, run_dir, "--resume", "auto")).returncode == 0
    assert (run_dir / RECORD).read_bytes() == (finished[0] / RECORD).read_bytes()


def test_training_goes_on_with_what_was_chosen(
    data: Path, finished: tuple[Path, CommandOutput], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is lost between the end of the search and its first file: nothing is searched again."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / RECORD).write_bytes((finished[0] / RECORD).read_bytes())
    monkeypatch.setattr(search, "build_session", None)
    output = dqrm_cpu(*options(data, run_dir, "--resume", "auto"))
    assert output.returncode == 0, output.stderr
    assert (run_dir / "config.toml").read_bytes() == (finished[0] / "config.toml").read_bytes()
    (run_dir / "result.json").unlink()  # as if it had been killed later
    output = dqrm_cpu(*options(data, run_dir, "--resume", "auto"))
    assert output.returncode == 0, output.stderr
    assert (run_dir / "config.toml").read_bytes() == (finished[0] / "config.toml").read_bytes()


def test_the_same_command_on_a_run_that_finished_finds_everything_done(
    data: Path, finished: tuple[Path, CommandOutput], tmp_path: Path
) -> None:
    run_dir = shutil.copytree(finished[0], tmp_path / "run")
    again = dqrm_cpu(*options(data, run_dir, "--resume", "auto"))
    assert again.returncode == 0, again.stderr
    assert "chosen: " in again.stderr
    assert "trial 1 of 4" not in again.stderr
    for name in (RECORD, "packed/dense.safetensors"):
        assert (run_dir / name).read_bytes() == (finished[0] / name).read_bytes()
    assert timeless_rows(run_dir) == timeless_rows(finished[0])


def timeless_rows(run_dir: Path) -> list[dict[str, object]]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in ("logged_at", "crc32")} for row in rows]


def test_mistakes_are_told(data: Path, finished: tuple[Path, CommandOutput], tmp_path: Path) -> None:
    no_validation = tmp_path / "no-validation"
    write_click_rates(no_validation, {"train": 100, "validation": 0, "test": 100})
    begun = tmp_path / "begun"
    common = ("train", "--data", data, "--run-dir", begun, *SHORT, *SMALL_MODEL)
    assert dqrm_cpu(*common).returncode == 0
    (begun / "result.json").unlink()
    everything = [
        text
        for option, value in (
            *(("--train.optimizer", "sgd"), ("--train.learning-rate", "0.1"), ("--train.weight-decay", "0")),
            ("--quant.step-width", "1"),
        )
        for text in (option, value)
    ]
    new = tmp_path / "new"
    for arguments, words in (
        (options(data, new, tune=0), "--tune: '0' is no whole number from 2 on"),
        (options(data, new, tune=1), "--tune: '1' is no whole number from 2 on"),
        (options(no_validation, new), "has no validation rows"),
        (options(data, new, *everything), "has nothing to search"),
        (options(data, new, "--config", finished[0] / "config.toml"), "has nothing to search"),
        (options(data, finished[0], "--resume", "auto", tune=5), "has --tune 4; give that"),
        (options(data, finished[0]), "holds a run already"),
        (options(data, begun, "--resume", "auto"), "began without --tune"),
    ):
        output = dqrm_cpu(*arguments)
        assert output.returncode != 0, arguments
        assert words in output.stderr, (arguments, output.stderr)
        assert "Traceback" not in output.stderr
    assert not list(new.glob("*.json"))


def test_a_damaged_record_is_refused(finished: tuple[Path, CommandOutput], tmp_path: Path) -> None:
    text = (finished[0] / RECORD).read_text()
    for damaged, words in (
        (text.replace('"asked": 4', '"asked": 5'), "does not match its own checksum"),
        (text[:-10], "is no JSON"),
        ("[]", "lacks or mistakes a field"),
        (text.replace('"format": 1', '"format": 2'), "has format 2"),
    ):
        (tmp_path / RECORD).write_text(damaged)
        with pytest.raises(ConfigError, match=words):
            read_record(tmp_path)
