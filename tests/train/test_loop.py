"""When the loop evaluates, saves, stops, and which checkpoint it reports."""

import io
import json
from pathlib import Path

import pytest

from dqrm_cpu.comm.transports.single import SingleTransport
from dqrm_cpu.config import Config
from dqrm_cpu.train.result import Result
from dqrm_cpu.train.run import RunRequest, train
from dqrm_cpu.train.run_folder import read_rows
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
    rows = {row.step: row.metrics for row in read_rows(tmp_path / "run") if row.phase == "validation"}
    best = max(rows, key=lambda step: rows[step].auc)
    assert best != result.steps, "the test needs a model that overfits"
    assert result.best_step == best
    assert result.validation.best == rows[best]
    assert result.validation.last == rows[result.steps]
    assert result.test.best != result.test.last
    assert saved_steps(tmp_path / "run") == [best, result.steps]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["test"]["best"]["auc"] == result.test.best.auc


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
    from dataclasses import replace

    config = tiny_config(train={"max_steps": 4})
    result = run(replace(config, comm=replace(config.comm, simulated_ranks=ranks)), tmp_path / "run")
    assert (result.world_size, result.simulated_ranks) == (1, ranks)
