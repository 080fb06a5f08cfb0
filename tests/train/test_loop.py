"""When the loop evaluates, saves, stops, and which checkpoint it reports."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from dqrm_cpu.cli.train import result_table
from dqrm_cpu.comm.transport import SingleTransport
from dqrm_cpu.config import Config
from dqrm_cpu.train.checkpoint_folder import find_checkpoint, read_state
from dqrm_cpu.train.run import RunRequest, train
from dqrm_cpu.train.run_folder import read_rows
from dqrm_cpu.train.state import Result
from tiny import tiny_config


def run(config: Config, folder: Path) -> Result:
    outcome = train(config, RunRequest(folder, False, {}, io.StringIO()), SingleTransport())
    assert isinstance(outcome, Result)
    return outcome


def steps_of(folder: Path, phase: str) -> list[int]:
    return [row.step for row in read_rows(folder) if row.phase == phase]


def saved_steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").iterdir())


def test_an_epoch_ends_with_an_evaluation(tmp_path: Path) -> None:
    result = run(tiny_config(train={"epochs": 2}), tmp_path / "run")
    assert result.steps == 126
    assert steps_of(tmp_path / "run", "validation") == [63, 126]
    assert steps_of(tmp_path / "run", "test") == [126]
    assert steps_of(tmp_path / "run", "train") == list(range(5, 126, 5))


def test_evaluations_and_checkpoints_at_their_own_periods(tmp_path: Path) -> None:
    settings = {"max_steps": 50, "evaluate_every": 20, "checkpoint_every": 15, "keep_checkpoints": 9}
    result = run(tiny_config(train=settings), tmp_path / "run")
    assert steps_of(tmp_path / "run", "validation") == [20, 40, 50]
    assert {15, 30, 45, result.best_step} <= set(saved_steps(tmp_path / "run")) <= {15, 20, 30, 40, 45, 50}


def test_the_best_on_validation_is_reported_beside_the_last(tmp_path: Path) -> None:
    """A learning rate that ruins the model in the end: the best is an earlier checkpoint, and it is still there."""
    config = tiny_config(train={"epochs": 12, "learning_rate": 1.0, "keep_checkpoints": 1}, data={"train_rows": 600})
    result = run(config, tmp_path / "run")
    rows = {row.step: row.metrics for row in read_rows(tmp_path / "run") if row.phase == "validation" and row.metrics}
    best = max(rows, key=lambda step: rows[step].auc)
    assert best != result.steps, "the test needs a model that overfits"
    assert result.best_step == best
    assert result.validation.best == rows[best]
    assert result.validation.last == rows[result.steps]
    assert result.test.best != result.test.last
    assert saved_steps(tmp_path / "run") == [best, result.steps]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["test"]["best"]["auc"] == result.test.best.auc


LOG_LOSS_FIRST = {"learning_rate": 1.0, "evaluate_every": 10, "max_steps": 60, "epochs": 9}
"""Of 600 rows: log loss is at its best at step 40, and AUC at step 60."""


@pytest.mark.parametrize("by", ["auc", "log-loss", "ne"])
def test_the_figure_that_was_asked_for_decides_which_checkpoint_is_the_best(by: str, tmp_path: Path) -> None:
    settings = {**LOG_LOSS_FIRST, "best_by": by, "keep_checkpoints": 1}
    result = run(tiny_config(train=settings, data={"train_rows": 600}), tmp_path / "run")
    rows = {row.step: row.metrics for row in read_rows(tmp_path / "run") if row.phase == "validation" and row.metrics}
    by_auc = max(rows, key=lambda step: rows[step].auc)
    by_log_loss = min(rows, key=lambda step: rows[step].log_loss)
    assert by_auc != by_log_loss, "the test needs a model whose best steps differ"
    best = find_checkpoint(tmp_path / "run" / "checkpoints", "best")
    assert read_state(best)["step"] == result.best_step == (by_auc if by == "auc" else by_log_loss)
    assert result.validation.best == rows[result.best_step]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["best_by"] == by
    told = {"auc": "", "log-loss": "log loss on validation", "ne": "normalized entropy on validation"}[by]
    assert ("best by" in result_table(result)) == bool(told)
    assert told in result_table(result)


@pytest.mark.parametrize("by", ["auc", "log-loss"])
def test_patience_waits_for_the_figure_that_decides(by: str, tmp_path: Path) -> None:
    settings = {**LOG_LOSS_FIRST, "max_steps": 80, "early_stop_patience": 2, "best_by": by}
    result = run(tiny_config(train=settings, data={"train_rows": 600}), tmp_path / "run")
    assert (result.best_step, result.steps) == ((40, 60) if by == "log-loss" else (70, 80))


def test_an_auc_that_was_wanted_ends_a_run_whose_best_step_is_chosen_by_log_loss(tmp_path: Path) -> None:
    settings = {**LOG_LOSS_FIRST, "max_steps": 80, "best_by": "log-loss", "early_stop_auc": 0.56}
    result = run(tiny_config(train=settings, data={"train_rows": 600}), tmp_path / "run")
    assert result.validation.best.auc < 0.56 <= result.validation.last.auc
    assert (result.best_step, result.steps) == (40, 60)


def test_early_stop_on_auc(tmp_path: Path) -> None:
    config = tiny_config(train={"epochs": 20, "evaluate_every": 10, "early_stop_auc": 0.5001})
    result = run(config, tmp_path / "run")
    assert result.validation.last.auc >= 0.5001
    assert steps_of(tmp_path / "run", "validation")[-1] == result.steps < 20 * 63


def test_early_stop_on_patience(tmp_path: Path) -> None:
    settings = {"epochs": 60, "learning_rate": 1.0, "early_stop_patience": 2}
    result = run(tiny_config(train=settings, data={"train_rows": 600}), tmp_path / "run")
    epoch = -(-600 // 32)
    assert result.steps == result.best_step + 2 * epoch
    assert result.steps < 60 * epoch


def test_tensorboard_gets_the_same_rows(tmp_path: Path) -> None:
    run(tiny_config(train={"tensorboard": True, "max_steps": 10}), tmp_path / "run")
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))


@pytest.mark.parametrize("ranks", [1, 3])
def test_simulated_ranks_report_the_world_they_stand_for(ranks: int, tmp_path: Path) -> None:
    config = tiny_config(train={"max_steps": 4})
    result = run(replace(config, comm=replace(config.comm, simulated_ranks=ranks)), tmp_path / "run")
    assert (result.world_size, result.simulated_ranks) == (1, ranks)
