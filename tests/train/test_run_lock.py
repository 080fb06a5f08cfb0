"""One command at a time trains in a run folder, and whoever comes second changes nothing there."""

import errno
import fcntl
import io
import os
from pathlib import Path

import pytest

from dqrm_cpu.base.lock import FolderLock
from dqrm_cpu.comm.transport import SingleTransport
from dqrm_cpu.errors import ConfigError
from dqrm_cpu.train.run import RunRequest, train
from dqrm_cpu.train.run_place import holds_run
from dqrm_cpu.train.state import Result
from folders import files_of
from tiny import tiny_config

SHORT = {"max_steps": 2, "log_every": 1}


def run(folder: Path, resume: bool, stream: io.StringIO | None = None, steps: int = 2) -> object:
    config = tiny_config(train={**SHORT, "max_steps": steps})
    return train(config, RunRequest(folder, resume, {}, stream or io.StringIO()), SingleTransport())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("locked") / "run"
    run(folder, resume=False)
    return folder


def test_a_live_run_is_left_alone(finished: Path) -> None:
    """Not even what looks like the rest of a crash is cleared away: the other process may be writing it."""
    writing = finished / "checkpoints" / ".writing-step-000000003"
    writing.mkdir()
    (writing / "shard-00000.safetensors").write_bytes(b"half")
    with FolderLock(finished, ".lock", "held", ConfigError):
        before = files_of(finished)
        with pytest.raises(ConfigError, match=rf"another dqrm-cpu train works in .*process {os.getpid()} on "):
            run(finished, resume=True, steps=4)
        assert files_of(finished) == before


def test_two_new_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    with FolderLock(tmp_path, ".lock", "held", ConfigError):
        with pytest.raises(ConfigError, match="another dqrm-cpu train works in"):
            run(tmp_path, resume=False)
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_lock_alone_is_no_run(tmp_path: Path) -> None:
    FolderLock(tmp_path, ".lock", "held", ConfigError).close()
    assert not holds_run(tmp_path)
    assert isinstance(run(tmp_path, resume=False), Result)


def test_the_end_of_training_lets_go(finished: Path) -> None:
    FolderLock(finished, ".lock", "held", ConfigError).close()


@pytest.mark.parametrize("kind", ["link", "FIFO", "folder"])
def test_something_else_under_the_name_of_the_lock_is_not_followed(tmp_path: Path, kind: str) -> None:
    victim, place = tmp_path / "victim", tmp_path / "run" / ".lock"
    place.parent.mkdir()
    victim.write_text("precious")
    match kind:
        case "link":
            place.symlink_to(victim)
        case "FIFO":
            os.mkfifo(place)
        case _:
            place.mkdir()
    with pytest.raises(ConfigError, match=r"cannot be locked: .*remove what stands in the way"):
        run(place.parent, resume=False)
    assert victim.read_text() == "precious"


def test_a_file_system_without_locks_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    stream = io.StringIO()
    assert isinstance(run(tmp_path / "run", resume=False, stream=stream), Result)
    assert "has no locks" in stream.getvalue()
