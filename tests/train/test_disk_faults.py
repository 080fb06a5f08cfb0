"""Training on a disk that fails: one clear error and nothing lost, or training on and saying what is not saved."""

import errno
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from dqrm_cpu.comm.transport import SingleTransport
from dqrm_cpu.config import Config
from dqrm_cpu.errors import CheckpointError, DqrmError, TrainingError
from dqrm_cpu.train import loop as loop_module
from dqrm_cpu.train.checkpoint import CheckpointStore
from dqrm_cpu.train.checkpoint_folder import read_state
from dqrm_cpu.train.run import RunRequest, train
from dqrm_cpu.train.run_folder import read_rows
from dqrm_cpu.train.run_place import checkpoints_folder
from dqrm_cpu.train.state import Result
from failing_disk import FailingDisk
from launching import run_world
from tiny import tiny_config

CODES = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT)
SAMPLES = 12


def config(**settings: object) -> Config:
    tiny = tiny_config(
        train={"max_steps": 12, "evaluate_every": 6, "checkpoint_every": 4, **settings},
        data={"train_rows": 400, "validation_rows": 100, "test_rows": 100},
    )
    return replace(tiny, kernels="torch")


def run(settings: Config, folder: Path, resume: bool = False) -> tuple[Result, str]:
    stream = io.StringIO()
    outcome = train(settings, RunRequest(folder, resume, {}, stream), SingleTransport())
    assert isinstance(outcome, Result)
    return outcome, stream.getvalue()


def newest(folder: Path) -> Path:
    path = CheckpointStore(checkpoints_folder(folder), 1).newest()
    assert path is not None
    return path


def left_by(folder: Path) -> list[object]:
    """What must be the same to the bit: the last weights, the rows without their times, the metrics."""
    shards = [path.read_bytes() for path in sorted(newest(folder).glob("*.safetensors"))]
    rows = [(row.step, row.phase, row.loss, row.metrics) for row in read_rows(folder)]
    result = json.loads((folder / "result.json").read_text())
    return [shards, rows, result["validation"], result["test"], result["best_step"]]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[object], int]:
    """A run on a good disk, and how many operations it takes."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        disk = FailingDisk(patch, folder)
        run(config(), folder)
    return left_by(folder), disk.count


@pytest.mark.parametrize("sample", range(SAMPLES))
def test_any_operation_may_fail_and_resuming_gives_the_same_bits(
    sample: int, undisturbed: tuple[list[object], int], tmp_path: Path
) -> None:
    expected, count = undisturbed
    number = 1 + sample * (count - 1) // (SAMPLES - 1)
    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        disk = FailingDisk(patch, folder)
        disk.fails, disk.code = lambda at: at == number, CODES[sample % len(CODES)]
        try:
            run(config(), folder)
        except DqrmError as error:
            assert "\n" not in str(error)
    run(config(), folder, resume=True)
    assert left_by(folder) == expected


@pytest.mark.parametrize("sample", range(3))
def test_a_disk_that_stays_full_ends_the_run_with_a_checkpoint_that_goes_on(
    sample: int, undisturbed: tuple[list[object], int], tmp_path: Path
) -> None:
    expected, count = undisturbed
    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        disk = FailingDisk(patch, folder)
        disk.fails = lambda at: at > count * (sample + 1) // 4
        with pytest.raises(DqrmError, match="No space left on device"):
            run(config(), folder)
    run(config(), folder, resume=True)
    assert left_by(folder) == expected


def test_training_goes_on_without_saving_and_says_so(
    undisturbed: tuple[list[object], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full at the checkpoints of steps 4 and 6, and takes those of 8 and 12."""
    folder = tmp_path / "run"
    settings = config(on_disk_full="continue-without-saving", log_every=1)
    refusing(monkeypatch, (4, 6))
    _, stderr = run(settings, folder)
    assert stderr.count("is not saved") == 2
    assert "warning: step 4 is not saved: No space left on device" in stderr.replace(f"{folder}", "RUN")
    assert "there is no checkpoint on the disk; the next checkpoint is tried again" in stderr
    failed = {row.step: row.failed_saves for row in read_rows(folder) if row.phase == "train"}
    assert [failed[step] for step in (4, 5, 7, 8, 9)] == [0, 1, 2, 2, 0]
    assert left_by(folder)[0] == undisturbed[0][0]


def test_a_best_step_that_was_not_saved_is_not_reported_as_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing(monkeypatch, (6,))
    settings = config(on_disk_full="continue-without-saving", checkpoint_every=0, learning_rate=1.0)
    result, _ = run(settings, tmp_path / "run")
    best = CheckpointStore(checkpoints_folder(tmp_path / "run"), 1).best()
    assert best is not None
    assert read_state(best)["best_step"] == result.best_step == 12


def test_what_is_missing_in_the_end_is_told_and_the_rest_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    refusing(monkeypatch, (12,))
    with pytest.raises(TrainingError, match=r"training is complete, but .* weights of step 12; on the disk is .*0008"):
        run(config(on_disk_full="continue-without-saving"), folder)
    assert json.loads((folder / "result.json").read_text())["steps"] == 12
    assert (folder / "packed" / "dense.safetensors").exists()


def test_a_packed_model_that_does_not_fit_does_not_cost_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise CheckpointError("dense.safetensors cannot be written (No space left on device)")

    monkeypatch.setattr(loop_module, "pack_model", full)
    with pytest.raises(TrainingError, match=r"the packed model .* dqrm-cpu compress .*run makes one") as caught:
        run(config(), tmp_path / "run")
    assert caught.value.unanimous
    assert json.loads((tmp_path / "run" / "result.json").read_text())["packed_files"] is None


@pytest.mark.mpi
def test_all_ranks_learn_of_a_save_that_failed(tmp_path: Path) -> None:
    """Only rank 0 writes checkpoints, and so only rank 0 meets the full disk."""
    script = (
        "import sys; from dqrm_cpu.cli.main import main; from dqrm_cpu.train import checkpoint\n"
        "def full(*_): raise OSError(28, 'No space left on device')\n"
        "checkpoint.making_folder = full; sys.exit(main(sys.argv[1:]))"
    )
    sizes = ["--data.train-rows", "400", "--data.validation-rows", "100", "--data.test-rows", "100"]
    sizes += ["--model.table-rows", "40,3,500", "--model.embedding-dim", "6", "--model.bottom-mlp", "9,6"]
    sizes += ["--model.top-mlp", "11,1", "--train.max-steps", "8", "--train.checkpoint-every", "4"]
    command = ["-c", script, "train", *sizes, "--kernels", "torch", "--run-dir", tmp_path / "run"]
    world = run_world("gloo", [*command, "--train.on-disk-full", "continue-without-saving"], 2, timeout_s=120)
    assert not world.timed_out
    assert [rank.returncode for rank in world.ranks] == [1, 1]
    assert "Traceback" not in world.ranks[0].stderr + world.ranks[1].stderr
    output = world.ranks[0].stderr
    assert output.count("warning: step 4 is not saved") == 1
    assert "training is complete, but not on the disk: the weights of step 8; there is no checkpoint" in output
    assert world.ranks[1].stderr == ""
    assert (tmp_path / "run" / "result.json").exists()


def refusing(monkeypatch: pytest.MonkeyPatch, steps: tuple[int, ...]) -> None:
    """A disk that is full whenever these steps are saved."""
    save = CheckpointStore.save

    def save_unless_full(store: CheckpointStore, step: int, *arguments: object) -> Path:
        if step in steps:
            raise CheckpointError("No space left on device")
        return save(store, step, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(CheckpointStore, "save", save_unless_full)
