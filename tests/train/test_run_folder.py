"""The run folder: rows that survive crashes and resumes, files whole or not at all, no run written over another."""

import errno
import json
import math
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dqrm_cpu.errors import CheckpointError, ConfigError, DeviceError, TrainingError
from dqrm_cpu.metrics.click import ClickMetrics
from dqrm_cpu.train.metrics_row import MetricsRow, RunPhase, StepTimes
from dqrm_cpu.train.run_folder import RunFolder, RunLog, read_rows, result_checksum
from dqrm_cpu.train.run_place import checkpoints_folder, holds_run

METRICS = ClickMetrics(auc=0.8, accuracy=0.75, log_loss=0.5, normalized_entropy=0.9, calibration=1.1, examples=1000)


def _row(step: int, phase: RunPhase = "train", loss: float = 0.5) -> MetricsRow:
    return MetricsRow(step, 1, phase, loss, 1000.0, 0.1, None if phase == "train" else METRICS)


def _create(path: Path, *, tensorboard: bool = False) -> RunFolder:
    return RunFolder.create(path, "epochs = 1\n", {"cores": 2}, tensorboard=tensorboard)


def _reopen(path: Path, step: int, *, tensorboard: bool = False) -> RunFolder:
    return RunFolder.reopen(path, step, "epochs = 1\n", {"cores": 2}, tensorboard=tensorboard)


def _log(folder: RunFolder, *rows: MetricsRow) -> None:
    for row in rows:
        folder.log(row)


_numbers = st.floats()
_click_metrics = st.builds(ClickMetrics, *[_numbers] * 5, st.integers(0, 10**9))
_rows = st.builds(
    MetricsRow,
    st.integers(0, 10**9),
    st.integers(1, 99),
    st.sampled_from(["train", "validation", "test"]),
    *[_numbers] * 3,
    st.none() | _click_metrics,
    times=st.builds(StepTimes, *[_numbers] * len(StepTimes._fields)),
)


@settings(deadline=None)
@given(_rows)
def test_rows_come_back_from_strict_json_with_nan_for_what_is_not_finite(row: MetricsRow) -> None:
    text = json.dumps(row.to_json(), allow_nan=False)
    back = MetricsRow.from_json(json.loads(text))
    assert repr(back) == repr(row).replace("-inf", "nan").replace("inf", "nan")


def test_a_row_is_flat_and_undefined_figures_are_null(tmp_path: Path) -> None:
    folder = _create(tmp_path)
    one_class = ClickMetrics(math.nan, 1.0, 0.1, math.nan, math.inf, 5)
    _log(folder, _row(10), MetricsRow(10, 1, "validation", 0.1, 1e6, 0.1, one_class))
    train, validation = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    sent = ["index_bytes", "value_bytes", "scale_bytes", "mlp_bytes"]
    watched = ["memory_bytes", "skipped_batches", "scale_absmax", "lookup_clip_rate"]
    place = ["step", "epoch", "phase", "loss", "examples_per_second", "learning_rate"]
    named = [*place, *sent, *watched, *StepTimes._fields]
    assert list(train) == named
    assert (validation["auc"], validation["calibration"], validation["accuracy"]) == (None, None, 1.0)
    assert validation["examples"] == 5
    folder.close()


def test_rows_can_be_read_as_soon_as_they_are_logged(tmp_path: Path) -> None:
    folder = _create(tmp_path)
    rows = [_row(1), _row(2, "validation")]
    _log(folder, *rows)
    assert read_rows(tmp_path) == rows
    folder.close()


def test_create_writes_configuration_and_environment(tmp_path: Path) -> None:
    folder = _create(tmp_path / "deep" / "run")
    assert (folder.path / "config.toml").read_text() == "epochs = 1\n"
    assert json.loads((folder.path / "environment.json").read_text()) == {"cores": 2}
    assert folder.checkpoints == checkpoints_folder(folder.path) == tmp_path / "deep" / "run" / "checkpoints"
    folder.close()


@pytest.mark.parametrize("name", ["config.toml", "metrics.jsonl", "result.json", "checkpoints"])
def test_create_refuses_a_folder_that_holds_a_run(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    assert holds_run(tmp_path)
    with pytest.raises(ConfigError, match=r"--resume auto.*--run-dir"):
        _create(tmp_path)


def test_create_accepts_a_folder_with_other_files(tmp_path: Path) -> None:
    (tmp_path / "slurm-1.out").touch()
    _create(tmp_path).close()


def test_a_path_that_is_a_file_is_an_error_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        _create(tmp_path / "file")


def test_reopen_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no run"):
        _reopen(tmp_path, 0)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 30), st.integers(0, 30), st.binary(max_size=20))
def test_a_resumed_run_reads_as_if_never_interrupted(resumed_step: int, more: int, torn: bytes) -> None:
    reached = resumed_step + more
    with TemporaryDirectory() as name:
        path = Path(name) / "run"
        folder = _create(path)
        _log(folder, *[_row(step) for step in range(1, reached + 1)])
        folder.close()
        with (path / "metrics.jsonl").open("ab") as file:
            file.write(torn.replace(b"\n", b"\0"))
        folder = _reopen(path, resumed_step)
        rows = [_row(step, "validation") for step in range(resumed_step + 1, reached + 2)]
        _log(folder, *rows)
        folder.close()
        assert read_rows(path) == [*(_row(step) for step in range(1, resumed_step + 1)), *rows]


def test_reopening_a_finished_run_takes_back_its_result_and_its_test_rows(tmp_path: Path) -> None:
    folder = _create(tmp_path)
    _log(folder, _row(5), _row(5, "validation"), _row(5, "test"))
    folder.write_result({"auc": 0.8})
    folder.close()
    _reopen(tmp_path, 5).close()
    assert read_rows(tmp_path) == [_row(5), _row(5, "validation")]
    assert not (tmp_path / "result.json").exists()


def test_reopening_an_interrupted_run_takes_back_its_mark(tmp_path: Path) -> None:
    folder = _create(tmp_path)
    folder.write_interrupted(7, "SIGUSR1")
    folder.close()
    assert json.loads((tmp_path / "interrupted.json").read_text()) == {"step": 7, "signal": "SIGUSR1"}
    _reopen(tmp_path, 7).close()
    assert not (tmp_path / "interrupted.json").exists()


def test_a_changed_configuration_does_not_hide_the_one_before(tmp_path: Path) -> None:
    _create(tmp_path).close()
    RunFolder.reopen(tmp_path, 7, "epochs = 2\n", {"cores": 2}).close()
    assert (tmp_path / "config.toml").read_text() == "epochs = 2\n"
    assert (tmp_path / "config-until-step-000000007.toml").read_text() == "epochs = 1\n"
    assert not list(tmp_path.glob("environment-*"))


def test_a_broken_line_in_the_middle_is_named_to_whoever_needs_all_rows(tmp_path: Path) -> None:
    folder = _create(tmp_path)
    _log(folder, _row(1))
    folder.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2}\n' + json.dumps(_row(3).to_json()) + "\n")
    with pytest.raises(CheckpointError, match="line 2, after step 1, lacks or mistakes a field"):
        read_rows(tmp_path)


def test_the_result_is_whole_and_strict(tmp_path: Path) -> None:
    folder = _create(tmp_path)
    folder.write_result({"auc": math.nan, "parts": [{"loss": math.inf, "steps": 3}]})
    folder.close()
    written = json.loads((tmp_path / "result.json").read_text())
    assert written.pop("crc32") == result_checksum(written)
    assert written == {"auc": None, "parts": [{"loss": None, "steps": 3}]}
    assert not list(tmp_path.glob(".*"))


def test_a_full_disk_is_no_mistake_in_the_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainingError, match=r"cannot be written \(No space left on device\); free some space"):
        _create(tmp_path)


def test_tensorboard_gets_the_same_rows_and_hides_what_a_resume_cut(tmp_path: Path) -> None:
    folder = _create(tmp_path, tensorboard=True)
    _log(folder, _row(1, loss=1.0), _row(2, loss=2.0), _row(2, "validation"), _row(3, loss=3.0))
    folder.close()
    folder = _reopen(tmp_path, 2, tensorboard=True)
    _log(folder, _row(3, loss=4.0))
    folder.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 1.0), (2, 2.0), (3, 4.0)]
    assert [event.value for event in events.Scalars("validation/auc")] == pytest.approx([METRICS.auc])
    assert "train/step" not in events.Tags()["scalars"]


def test_missing_tensorboard_names_the_extra_and_leaves_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(DeviceError, match=r"pip install 'dqrm-cpu\[report\]'"):
        _create(tmp_path, tensorboard=True)
    assert not holds_run(tmp_path)


def test_a_rank_without_a_folder_makes_the_same_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    log = RunLog()
    log.log(_row(1))
    log.sync()
    log.write_result({"auc": 0.5})
    log.write_interrupted(1, "SIGTERM")
    log.close()
    assert not list(tmp_path.iterdir())
