"""Files appear whole or not at all, follow no link, and are read only if they are regular."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from dqrm_cpu.base.files import (
    making_folder,
    open_regular,
    read_regular,
    remove_abandoned,
    remove_leftovers,
    replace_file,
    replacing,
    set_aside,
    working_folder_of,
)
from dqrm_cpu.errors import DataError


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    replace_file(path, [b"ne", memoryview(b"w")], DataError)
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_while_writing_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    message = r"a\.json cannot be written \(No space left on device\); free some space"
    with pytest.raises(DataError, match=message), replacing(path, DataError) as file:
        file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_under_the_temporary_name_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / f".writing-a.{os.getpid()}").symlink_to(victim)
    replace_file(tmp_path / "a", [b"new"], DataError)
    assert victim.read_bytes() == b"precious"
    assert (tmp_path / "a").read_bytes() == b"new"
    assert not (tmp_path / "a").is_symlink()


def test_a_disk_that_cannot_sync_folders_takes_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def only_files(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink() == tmp_path:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", only_files)
    replace_file(tmp_path / "a", [b"new"], DataError)
    with making_folder(tmp_path / "b"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    with making_folder(tmp_path / "a") as folder:
        (folder / "file").write_bytes(b"whole")
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "a" / "file").read_bytes() == b"whole"
    with pytest.raises(KeyboardInterrupt), making_folder(tmp_path / "b") as folder:
        (folder / "file").write_bytes(b"half")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_file_that_is_set_aside_says_why_before_its_suffix(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"old")
    set_aside(tmp_path / "a.json", "until-step-3")
    assert (tmp_path / "a-until-step-3.json").read_bytes() == b"old"


def test_what_a_killed_process_was_writing_is_swept_up(tmp_path: Path) -> None:
    (tmp_path / ".writing-a.123").write_bytes(b"half")
    (tmp_path / ".writing-b").mkdir()
    (tmp_path / ".removing-b" / "inner").mkdir(parents=True)
    (tmp_path / "a").write_bytes(b"whole")
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_only_what_no_process_holds_is_abandoned(tmp_path: Path) -> None:
    """Of the same name: others are left to whoever writes under theirs."""
    path = tmp_path / "a.csv"
    for name in (".writing-a.csv.123", ".writing-a.csv.5.7", ".writing-b.csv.123", ".writing-a.csv.old"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / ".writing-a.csv.x_1").mkdir()
    (tmp_path / ".writing-a.csv.x_1" / "tables").write_bytes(b"half")
    (tmp_path / ".writing-a.csv.4").symlink_to(tmp_path)
    kept = [".writing-a.csv.4", ".writing-a.csv.5.7", ".writing-b.csv.123"]
    with replacing(path, DataError) as file, working_folder_of(path) as folder:
        file.write(b"whole")
        remove_abandoned(path)
        held = [f".writing-a.csv.{os.getpid()}", folder.name]
        assert sorted(one.name for one in tmp_path.iterdir()) == sorted([*kept, *held])
    assert path.read_bytes() == b"whole"
    assert sorted(one.name for one in tmp_path.iterdir()) == [*kept, "a.csv"]


def test_a_file_that_is_taken_for_abandoned_as_it_is_made_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process looks between the moments at which it is made and locked."""
    opened, meddled = os.open, list[Path]()

    def open_slowly(name: Path, flags: int, mode: int = 0o777) -> int:
        descriptor = opened(name, flags, mode)
        if flags & os.O_CREAT and not meddled:
            meddled.append(name)
            remove_abandoned(tmp_path / "a")
        return descriptor

    monkeypatch.setattr(os, "open", open_slowly)
    replace_file(tmp_path / "a", [b"whole"], DataError)
    assert meddled
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_file_system_without_locks_keeps_what_may_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    (tmp_path / ".writing-a.123").write_bytes(b"half")
    remove_abandoned(tmp_path / "a")
    replace_file(tmp_path / "a", [b"whole"], DataError)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".writing-a.123", "a"]


def test_a_fifo_is_refused_without_waiting_for_its_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="no regular file"):
        open_regular(tmp_path / "fifo")
    with pytest.raises(OSError, match="no regular file"):
        read_regular(Path("/dev/zero"), 10)


def test_a_file_beyond_its_limit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(11))
    assert read_regular(tmp_path / "a", 11) == bytes(11)
    with pytest.raises(OSError, match="more than 10 bytes"):
        read_regular(tmp_path / "a", 10)
