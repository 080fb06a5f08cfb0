"""A folder that may hold code: only ours, on every component, whoever came first."""

import os
import stat
from pathlib import Path

import pytest

from dqrm_cpu.base.private import NotPrivateError, private_folder, shared_with_others


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder like /tmp."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    return folder


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_every_component_is_made_for_this_user_alone(shared: Path) -> None:
    folder = private_folder(shared / "ours", "inner", "slot")
    assert folder == shared / "ours" / "inner" / "slot"
    assert [mode(path) for path in (folder, folder.parent, folder.parent.parent)] == [0o700] * 3
    assert private_folder(shared / "ours", "inner", "slot") == folder


def test_a_folder_to_share_is_made_too(tmp_path: Path) -> None:
    assert private_folder(tmp_path / "home" / ".cache" / "ours").is_dir()


@pytest.mark.parametrize("component", ["ours", "ours/inner", "ours/inner/slot"])
def test_a_component_that_is_a_link_is_refused(shared: Path, component: str) -> None:
    elsewhere = shared / "elsewhere"
    (elsewhere / "inner" / "slot").mkdir(parents=True)
    elsewhere.chmod(0o700)
    link = shared / component
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(elsewhere)
    with pytest.raises(NotPrivateError, match="is a symbolic link"):
        private_folder(shared / "ours", "inner", "slot")


@pytest.mark.parametrize("component", ["", "ours", "ours/inner", "ours/inner/slot"])
def test_a_component_of_another_user_is_refused(shared: Path, component: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the folder's owner one may be another user oneself, which needs no rights."""
    private_folder(shared / "ours", "inner", "slot")
    theirs = shared / component
    real_stat, real_fstat = Path.stat, os.fstat
    number = theirs.stat().st_ino

    def owned(status: os.stat_result) -> os.stat_result:
        fields = list(status)
        if status.st_ino == number:
            fields[stat.ST_UID] = 54321
        return os.stat_result(fields)

    monkeypatch.setattr(Path, "stat", lambda path, **options: owned(real_stat(path, **options)))
    monkeypatch.setattr(os, "fstat", lambda descriptor: owned(real_fstat(descriptor)))
    with pytest.raises(NotPrivateError, match="belongs to the user 54321"):
        private_folder(shared / "ours", "inner", "slot")


@pytest.mark.parametrize("writable", [0o770, 0o707])
def test_what_others_could_write_into_is_refused(shared: Path, writable: int) -> None:
    private_folder(shared / "ours", "slot").chmod(writable)
    with pytest.raises(NotPrivateError, match="what lies in it may be theirs"):
        private_folder(shared / "ours", "slot")


def test_a_folder_of_ours_on_the_way_is_closed_to_others(shared: Path) -> None:
    private_folder(shared / "ours", "slot")
    (shared / "ours").chmod(0o755)
    private_folder(shared / "ours", "slot")
    assert mode(shared / "ours") == 0o700


def test_a_folder_above_that_others_can_move_is_refused(shared: Path) -> None:
    shared.chmod(0o777)
    with pytest.raises(NotPrivateError, match="can be written to by other users"):
        private_folder(shared / "ours")


def test_a_folder_of_the_user_is_told_as_shared_where_every_user_can_write(tmp_path: Path) -> None:
    assert shared_with_others(tmp_path) == ""
    assert shared_with_others(tmp_path / "absent") == ""
    tmp_path.chmod(0o777)
    assert shared_with_others(tmp_path) == "can be written to by every user"
