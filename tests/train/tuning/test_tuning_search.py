"""The search before training, from its first trial to the run's config.toml: interrupted, refused, on ranks."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from click_rates import click_rates_config, write_click_rates
from commands import CommandOutput, dqrm_cpu
from dqrm_cpu.comm.transport import SingleTransport
from dqrm_cpu.config import Config, load_config
from dqrm_cpu.config.schema import flatten
from dqrm_cpu.errors import ConfigError, TrainingError
from dqrm_cpu.train.progress import open_progress
from dqrm_cpu.train.run import RunRequest
from dqrm_cpu.train.session import build_session
from dqrm_cpu.train.state import Interrupted
from dqrm_cpu.train.tuning import search
from dqrm_cpu.train.tuning.record import SearchRecord, read_record, record_path
from dqrm_cpu.train.tuning.search import Tuned, TuneRequest, shortened_schedule, tune
from launching import clean_environ, run_world
from several_commands import several_commands
from tiny import tiny_config

RECORD = "tuning.json"
SHORT = ("--train.max-steps", 40, "--train.threads", 1)
SMALL_MODEL = ("--model.embedding-dim", 8, "--model.bottom-mlp", "8,8", "--model.top-mlp", "16,1")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    write_click_rates(folder, {"train": 2000, "validation": 500, "test": 500})
    return folder


def options(data: Path, run_dir: Path, *others: object, tune: int = 4) -> list[object]:
    return ["train", "--data", data, "--run-dir", run_dir, "--tune", tune, *SHORT, *SMALL_MODEL, *others]


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CommandOutput]:
    """A run folder that nothing disturbed, and what its command wrote."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    output = dqrm_cpu(*options(data, folder))
    assert output.returncode == 0, output.stderr
    return folder, output


def record_of(run_dir: Path) -> SearchRecord:
    record = read_record(run_dir)
    assert record is not None
    return record


def run_search(config: Config, run_dir: Path, trials: int = 4, resume: bool = False) -> Tuned | Interrupted:
    request = RunRequest(run_dir, resume, {}, io.StringIO())
    return tune(config, request, TuneRequest(trials, frozenset()), SingleTransport())


@pytest.mark.long
@pytest.mark.timeout(900)
def test_tune_alone_learns_a_category_of_200_values(tmp_path: Path) -> None:
    """Of 60,000 raw rows whose clicks counted by value have an AUC of .785 on the rows held out; here it gets .784."""
    random = np.random.default_rng(7)
    rates = 1 / (1 + np.exp(-random.normal(-1, 1.5, 200)))
    items = random.integers(0, 200, 60_000)
    clicks, hours = random.random(60_000) < rates[items], random.integers(0, 24, 60_000)
    rows = "".join(f"{int(click)},{hour},i{item}\n" for click, hour, item in zip(clicks, hours, items, strict=True))
    (tmp_path / "log.csv").write_text(f"click,hour,item\n{rows}")
    lines = ('label = "click"', 'integers = ["hour"]', 'categories = ["item"]', 'delimiter = ","', "header = true")
    (tmp_path / "log.toml").write_text("\n".join(lines))
    prepared, run_dir = tmp_path / "data", tmp_path / "run"
    for command in (
        ("prepare", tmp_path / "log.csv", "--schema", tmp_path / "log.toml", "--out", prepared),
        ("train", "--data", prepared, "--run-dir", run_dir, "--tune"),
    ):
        output = dqrm_cpu(*command)
        assert output.returncode == 0, output.stderr
    assert json.loads((run_dir / "result.json").read_text())["test"]["best"]["auc"] > 0.775


def test_a_search_learns_what_the_defaults_do_not(tmp_path: Path) -> None:
    """Counting clicks per level is the best that anyone can do; the settings as they are do not get near it."""
    counting = write_click_rates(tmp_path / "data")
    aucs = {}
    for name, more in (("as it is", ()), ("tuned", ("--tune", 8))):
        run_dir = tmp_path / name
        output = dqrm_cpu(
            *("train", "--data", tmp_path / "data", "--run-dir", run_dir, "--train.epochs", 2, "--train.threads", 1),
            *("--train.batch-size", 64, *SMALL_MODEL, *more),
        )
        assert output.returncode == 0, output.stderr
        aucs[name] = json.loads((run_dir / "result.json").read_text())["test"]["best"]["auc"]
    assert aucs["as it is"] < counting - 0.1
    assert aucs["tuned"] > counting - 0.01


def test_trials_on_rows_that_were_thinned_alike_are_scored_without_a_correction(data: Path, tmp_path: Path) -> None:
    config = click_rates_config(data)
    thinned = replace(config.data, negative_keep_rate=0.1, evaluation_keep_rate=0.1)
    scores = []
    for name, data_config in (("plain", config.data), ("thinned", thinned)):
        run_search(replace(config, data=data_config), tmp_path / name, trials=2)
        scores.append([trial.scores for trial in record_of(tmp_path / name).trials])
    assert scores[0] == scores[1]
    assert any(scores[0])


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
    command = [sys.executable, "-m", "dqrm_cpu", *map(str, options(data, run_dir))]
    process = subprocess.Popen(command, env=clean_environ(), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not _scores(run_dir) and time.monotonic() < deadline:
        time.sleep(0.001)
    process.kill()
    process.wait(timeout=60)
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


def test_what_is_given_is_not_searched(data: Path, tmp_path: Path) -> None:
    given = ("--train.learning-rate", 0.25, "--train.weight-decay", 0, "--quant.step-width", 1)
    output = dqrm_cpu(*options(data, tmp_path / "run", *given, "--train.best-by", "log-loss", tune=8))
    assert output.returncode == 0
    record = record_of(tmp_path / "run")
    assert record.searched == ("train.optimizer",)
    assert len(record.trials) == 2
    assert "  log loss, 40 steps" in output.stderr
    config = load_config(None, tmp_path / "run" / "config.toml", {})
    assert config.train.learning_rate == 0.25


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


def test_the_number_of_trials_may_be_left_out(data: Path, tmp_path: Path) -> None:
    given = options(data, tmp_path / "run")
    given.pop(given.index("--tune") + 1)
    assert dqrm_cpu(*given, "--train.optimizer", "sgd", "--train.max-steps", 2).returncode == 0
    assert record_of(tmp_path / "run").asked == 8


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


def test_trials_that_diverge_are_not_chosen(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = click_rates_config(data, max_steps=4)
    failing = {"rowwise-adagrad"}

    def build(config: Config, *arguments: object) -> object:
        if config.train.optimizer in failing:
            raise TrainingError("the loss is nan")
        return build_session(config, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(search, "build_session", build)
    outcome = run_search(config, tmp_path / "some")
    assert isinstance(outcome, Tuned)
    assert outcome.config.train.optimizer == "sgd"
    assert any(trial.diverged for trial in outcome.record.trials)
    failing.add("sgd")
    with pytest.raises(TrainingError, match="every one of the 4 trials diverged"):
        run_search(config, tmp_path / "all")


def test_only_training_and_validation_rows_are_read(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*arguments: object) -> object:
        session = build_session(*arguments)  # type: ignore[arg-type]
        monkeypatch.setattr(session.loaders.test, "batches", None)
        return session

    monkeypatch.setattr(search, "build_session", build)
    monkeypatch.setattr(search, "MOST_VALIDATION_ROWS", 300)
    outcome = run_search(click_rates_config(data, max_steps=4), tmp_path)
    assert isinstance(outcome, Tuned)
    assert {score.examples for trial in outcome.record.trials for score in trial.scores if score} == {300}


def test_schedules_are_as_far_at_the_end_of_a_trial() -> None:
    train = {"warmup_steps": 100, "decay_start_step": 500, "decay_steps": 400}
    quant = {"step_width": (2.0,), "step_width_ramp_steps": 3}
    shortened = shortened_schedule(tiny_config(train=train, quant=quant), 0.1)
    assert (shortened.train.warmup_steps, shortened.train.decay_start_step, shortened.train.decay_steps) == (10, 50, 40)
    assert shortened.quant.step_width_ramp_steps == 1
    assert shortened_schedule(tiny_config(), 0.1) == tiny_config()


def test_a_trial_trains_in_fp32_for_as_much_shorter(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One epoch of four in FP32: one step of a trial of four."""
    quantized: list[int] = []

    def build(*arguments: object) -> object:
        session = build_session(*arguments)  # type: ignore[arg-type]
        quantized.append(sum(session.step.is_quantized_at(step) for step in range(4)))
        return session

    monkeypatch.setattr(search, "build_session", build)
    monkeypatch.setattr(search, "LONGEST_STEPS", 4)
    config = click_rates_config(data, epochs=4)
    config = replace(config, quant=replace(config.quant, method="dqrm", pretrain_epochs=1))
    assert isinstance(run_search(config, tmp_path, trials=2), Tuned)
    assert set(quantized) == {3}


@pytest.mark.mpi
def test_ranks_choose_what_simulated_ranks_choose(data: Path, tmp_path: Path) -> None:
    real, alone = tmp_path / "real", tmp_path / "alone"
    common = ("--train.max-steps", 12)
    world = run_world(
        "mpi", several_commands(options(data, real, *common, "--comm.transport", "mpi")), 2, timeout_s=280
    ).check()
    assert world.ranks[0].stderr.count("chosen: ") == 1
    assert world.ranks[1].stdout + world.ranks[1].stderr == ""
    assert dqrm_cpu(*options(data, alone, *common, "--comm.simulated-ranks", 2)).returncode == 0
    assert record_of(real).trials == record_of(alone).trials
    assert record_of(real).chosen == record_of(alone).chosen
