"""Folders that only this user can write to: code that was compiled into one may be executed."""

import contextlib
import errno
import grp
import os
import pwd
import stat
from pathlib import Path

_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class NotPrivateError(OSError):
    """The error of a folder that another user could have put files into, or could replace."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(errno.EPERM, why, str(path))

    def __str__(self) -> str:
        return f"{self.filename} {self.strerror}"


def private_folder(top: Path, *names: str) -> Path:
    """Returns the folder top/name/name/..., made where it does not exist; only its owner, this user, may enter it.

    The folder that holds `top` may be shared, as /tmp is. From `top` on no component may be a link or belong to
    somebody else; nobody else may be able to replace what lies above. Raises NotPrivateError otherwise, and OSError
    where nothing can be made.
    """
    shared = Path(os.path.realpath(top.parent))
    shared.mkdir(mode=0o700, parents=True, exist_ok=True)
    for folder in (shared, *shared.parents):
        _require_lasting(folder)
    path = shared
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for number, name in enumerate((top.name, *names)):
            path = path / name
            inner = _open_own(descriptor, path, is_last=number == len(names))
            os.close(descriptor)
            descriptor = inner
    finally:
        os.close(descriptor)
    return path


def shared_with_others(path: Path) -> str:
    """Says why another user may write to a folder that exists; empty where none may, or there is none."""
    try:
        status = path.stat()
    except OSError:
        return ""
    if status.st_uid not in (0, os.geteuid()):
        return f"belongs to {_user(status.st_uid)}"
    return "can be written to by every user" if status.st_mode & stat.S_IWOTH else ""


def _open_own(parent: int, path: Path, is_last: bool) -> int:
    """Opens a folder inside `parent`, which is made if need be, and returns its descriptor."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(path.name, 0o700, dir_fd=parent)
    try:
        descriptor = os.open(path.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR) and stat.S_ISLNK(os.lstat(path.name, dir_fd=parent).st_mode):
            raise NotPrivateError(path, "is a symbolic link, and whoever made it chose where it leads") from error
        raise
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid():
            raise NotPrivateError(path, f"belongs to {_user(status.st_uid)}")
        if is_last and status.st_mode & _WRITABLE_BY_OTHERS:
            raise NotPrivateError(path, "can be written to by other users, and what lies in it may be theirs")
        if status.st_mode & 0o077:
            # What others put into it is theirs, which is seen one folder further down.
            os.fchmod(descriptor, 0o700)
        return descriptor
    except BaseException:
        os.close(descriptor)
        raise


def _require_lasting(folder: Path) -> None:
    """Requires that nobody else can move away what a user has in `folder` and put something else there."""
    status = folder.stat()
    if status.st_uid not in (0, os.geteuid()):
        raise NotPrivateError(folder, f"belongs to {_user(status.st_uid)}")
    # In a folder with the sticky bit only the owner of a file may move it.
    if status.st_mode & stat.S_ISVTX or not status.st_mode & _WRITABLE_BY_OTHERS:
        return
    if status.st_mode & stat.S_IWOTH or not _is_own_group(status.st_gid):
        raise NotPrivateError(folder, "can be written to by other users")


def _is_own_group(gid: int) -> bool:
    """Tells whether a group has this user alone, as distributions make them; their folders are often group-writable."""
    try:
        group, name = grp.getgrgid(gid), pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return False
    return group.gr_name == name and set(group.gr_mem) <= {name}


def _user(uid: int) -> str:
    try:
        return f"the user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"the user {uid}"
