"""What the trials of the search before training train on, for how long, and what they find; on ranks too."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from click_rates import click_rates_config, write_click_rates
from commands import dqrm_cpu
from dqrm_cpu.comm.transport import SingleTransport
from dqrm_cpu.config import Config, load_config
from dqrm_cpu.errors import TrainingError
from dqrm_cpu.train.run import RunRequest
from dqrm_cpu.train.session import build_session
from dqrm_cpu.train.state import Interrupted
from dqrm_cpu.train.tuning import search
from dqrm_cpu.train.tuning.search import Tuned, TuneRequest, shortened_schedule, tune
from launching import run_world
from searches import SMALL_MODEL, options, record_of, write_small_data
from several_commands import several_commands
from tiny import tiny_config


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_data(tmp_path_factory.mktemp("small"))


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
    for name, more in (("as it is", ()), ("tuned", ("--tune", 4))):
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


def test_the_number_of_trials_may_be_left_out(data: Path, tmp_path: Path) -> None:
    given = options(data, tmp_path / "run")
    given.pop(given.index("--tune") + 1)
    few = ("--train.learning-rate", 0.25, "--train.weight-decay", 0, "--quant.step-width", 1, "--train.max-steps", 2)
    assert dqrm_cpu(*given, *few).returncode == 0
    assert record_of(tmp_path / "run").asked == 8


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
