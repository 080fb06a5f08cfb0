"""A run that is interrupted at any step and resumed ends with the same bits as one that was not."""

import io
import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dqrm_cpu.comm.transport import SingleTransport
from dqrm_cpu.config import Config
from dqrm_cpu.errors import CheckpointError, ConfigError
from dqrm_cpu.train.checkpoint_files import load_checkpoint
from dqrm_cpu.train.checkpoint_folder import find_checkpoint
from dqrm_cpu.train.metrics_row import StepTimes
from dqrm_cpu.train.progress import Progress
from dqrm_cpu.train.run import RunRequest, train
from dqrm_cpu.train.run_place import checkpoints_folder
from dqrm_cpu.train.state import Interrupted, Result
from tiny import tiny_config

FEW_ROWS = {"train_rows": 1000}
OF_THE_PROCESS = ("examples_per_second", "memory_bytes", "logged_at", *StepTimes._fields)


class SignalAt(Progress):
    """Sends this process a real signal, in time for training to stop after `step`: all ranks agree during a step."""

    def __init__(self, step: int, number: signal.Signals) -> None:
        self._step = step - 1
        self._number = number

    def update(self, step: int, loss: float) -> None:
        if step == self._step:
            os.kill(os.getpid(), self._number)


def run(config: Config, folder: Path, resume: bool = False, progress: Progress | None = None) -> Result | Interrupted:
    request = RunRequest(folder, resume, {}, io.StringIO(), open_progress=lambda *_: progress or Progress())
    return train(config, request, SingleTransport())


@pytest.fixture
def interrupted() -> Callable[..., Interrupted]:
    """Runs until a signal comes after a step."""

    def run_until(
        config: Config, folder: Path, step: int, number: signal.Signals = signal.SIGINT, **more: bool
    ) -> Interrupted:
        outcome = run(config, folder, progress=SignalAt(step, number), **more)
        assert isinstance(outcome, Interrupted)
        assert outcome.step == step
        return outcome

    return run_until


def final_tensors(config: Config, folder: Path) -> dict[str, torch.Tensor]:
    """Reads back everything in the last checkpoint."""
    rows, dim = sum(config.model.table_rows), config.model.embedding_dim
    from dqrm_cpu.model.shapes import mlp_shapes

    parameters, tables = mlp_shapes(config).num_parameters, len(config.model.table_rows)
    into = {
        "tables": torch.empty(rows, dim),
        "mlps": torch.empty(parameters),
        "scales.absmax": torch.empty(tables),
        "scales.step": torch.empty(tables),
    }
    if config.train.optimizer != "sgd":
        into |= {"optimizer.rows": torch.empty(rows), "optimizer.dense": torch.empty(parameters)}
    load_checkpoint(find_checkpoint(checkpoints_folder(folder), "last"), into)
    return into


def rows_without_its_process(folder: Path) -> list[dict[str, object]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in OF_THE_PROCESS} for row in rows]


def assert_same_run(config: Config, found: Path, expected: Path) -> None:
    ours, theirs = final_tensors(config, found), final_tensors(config, expected)
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
    assert rows_without_its_process(found) == rows_without_its_process(expected)
    results = [json.loads((folder / "result.json").read_text()) for folder in (found, expected)]
    for part in ("validation", "test", "steps", "best_step"):
        assert results[0][part] == results[1][part]


@pytest.mark.parametrize("kernels", ["torch", "numba"])
@pytest.mark.parametrize("optimizer", ["sgd", "rowwise-adagrad"])
@pytest.mark.parametrize("finder", ["scan", "track"])
def test_interrupted_twice_and_resumed(
    kernels: str, optimizer: str, finder: str, tmp_path: Path, interrupted: Callable[..., Interrupted]
) -> None:
    """32 steps an epoch, two epochs; stopped within a scale period and a logging window, then at an evaluation."""
    config = tiny_config(
        quant={"scale_period": 7, "scale_finder": finder},
        train={"optimizer": optimizer, "epochs": 2, "learning_rate": 0.2, "warmup_steps": 9},
        data=FEW_ROWS,
    )
    config = replace(config, kernels=kernels)
    assert isinstance(run(config, tmp_path / "whole"), Result)
    interrupted(config, tmp_path / "cut", 17)
    interrupted(config, tmp_path / "cut", 32, resume=True)
    assert isinstance(run(config, tmp_path / "cut", resume=True), Result)
    assert_same_run(config, tmp_path / "cut", tmp_path / "whole")


TWO_EPOCHS = tiny_config(train={"epochs": 2, "evaluate_every": 25, "checkpoint_every": 10}, data=FEW_ROWS)


@pytest.fixture(scope="module")
def two_epochs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert isinstance(run(TWO_EPOCHS, folder), Result)
    return folder


@pytest.mark.parametrize("step", [2, 5, 31, 33, 63])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_any_step_and_any_signal(
    step: int, number: signal.Signals, two_epochs: Path, tmp_path: Path, interrupted: Callable[..., Interrupted]
) -> None:
    assert interrupted(TWO_EPOCHS, tmp_path / "cut", step, number).signal == number.name
    run(TWO_EPOCHS, tmp_path / "cut", resume=True)
    assert_same_run(TWO_EPOCHS, tmp_path / "cut", two_epochs)


def test_a_signal_at_the_last_step_lets_the_run_finish(tmp_path: Path) -> None:
    assert isinstance(run(tiny_config(), tmp_path / "run", progress=SignalAt(63, signal.SIGTERM)), Result)


def test_multi_hot_and_simulated_ranks_resume_too(tmp_path: Path, interrupted: Callable[..., Interrupted]) -> None:
    config = tiny_config(data={"max_bag_size": 3}, model={"pooling": "mean"})
    config = replace(config, comm=replace(config.comm, simulated_ranks=3))
    run(config, tmp_path / "whole")
    interrupted(config, tmp_path / "cut", 30)
    run(config, tmp_path / "cut", resume=True)
    assert_same_run(config, tmp_path / "cut", tmp_path / "whole")


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, interrupted: Callable[..., Interrupted]
) -> None:
    config = tiny_config(train={"checkpoint_every": 10})
    run(config, tmp_path / "whole")
    interrupted(config, tmp_path / "cut", 35)
    newest = find_checkpoint(checkpoints_folder(tmp_path / "cut"), "last")
    shard = next(newest.glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(content)
    stream = io.StringIO()
    train(config, RunRequest(tmp_path / "cut", True, {}, stream), SingleTransport())
    assert "warning" in stream.getvalue()
    assert "step-000000030" in stream.getvalue()
    assert_same_run(config, tmp_path / "cut", tmp_path / "whole")


def test_a_finished_run_goes_on_for_more_steps(tmp_path: Path) -> None:
    short, whole = tiny_config(train={"max_steps": 40}), tiny_config(train={"max_steps": 63})
    run(short, tmp_path / "cut")
    run(whole, tmp_path / "cut", resume=True)
    run(tiny_config(train={"max_steps": 63, "evaluate_every": 40}), tmp_path / "whole")
    assert torch.equal(
        final_tensors(whole, tmp_path / "cut")["tables"], final_tensors(whole, tmp_path / "whole")["tables"]
    )


def test_resume_of_nothing_starts(tmp_path: Path) -> None:
    assert isinstance(run(tiny_config(), tmp_path / "new", resume=True), Result)


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path: Path) -> None:
    run(tiny_config(train={"max_steps": 2}), tmp_path / "run")
    with pytest.raises(ConfigError, match="--resume auto"):
        run(tiny_config(), tmp_path / "run")


def test_another_model_is_refused(tmp_path: Path) -> None:
    run(tiny_config(train={"max_steps": 2}), tmp_path / "run")
    with pytest.raises(CheckpointError, match="table_rows"):
        run(tiny_config(model={"table_rows": (41, 3, 500)}), tmp_path / "run", resume=True)
