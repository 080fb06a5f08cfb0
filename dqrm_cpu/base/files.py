"""Files and folders that appear whole or not at all, and files that are read only if they are what they should be.

Everything that writes a file under its final name goes through `replacing`; everything that reads a small file of
somebody else's making goes through `read_regular`. Nothing outside `base` renames a file or forces one to the disk,
but for a log that is appended to (`tests/test_layout.py`).
"""

import contextlib
import errno
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from dqrm_cpu.base.lock import try_lock
from dqrm_cpu.errors import DqrmError

WRITING = ".writing-"
"""Begins the name of a file or folder that is being written; whoever owns the folder may remove what is left of it."""

_REMOVING = ".removing-"

_ADVICE = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "the quota is used up: free some space",
    errno.EROFS: "the disk is read-only: give another folder",
    errno.EACCES: "this user may not write there: give another folder",
    errno.EPERM: "this user may not write there: give another folder",
    errno.EIO: "the disk or the network failed: check it",
}


def require_name_in_utf8(name: str | Path, raises: type[DqrmError]) -> None:
    """Raises where a name cannot be written into a file in UTF-8, as all that records names is."""
    try:
        str(name).encode()
    except UnicodeEncodeError:
        mend = "rename it" if sys.getfilesystemencoding() == "utf-8" else "set LC_ALL=C.UTF-8, or rename it"
        raise raises(f"{name} is no name in UTF-8, in which names are recorded; {mend}") from None


def replace_file(path: Path, pieces: Iterable[bytes | memoryview], raises: type[DqrmError]) -> None:
    """Writes the pieces one after another as `path`, whole or not at all."""
    with replacing(path, raises) as file:
        for piece in pieces:
            file.write(piece)


@contextlib.contextmanager
def replacing(
    path: Path, raises: type[DqrmError], *, force_to_disk: bool = True, advice: str | None = None
) -> Iterator[BinaryIO]:
    """Opens a temporary file beside `path`; at the end it is forced to the disk and takes the name.

    The temporary file is always a new one, so that a link which somebody put under its name is not followed. An
    OSError, also of the caller's own writing, becomes an error of the class `raises`, with `advice` on what to do.
    Without `force_to_disk` a loss of power may leave a file under its name that is not whole.
    """
    temporary = path.with_name(f"{WRITING}{path.name}.{os.getpid()}")
    try:
        descriptor = _open_new(temporary)
        # A second number for it keeps the lock until the file has its name.
        with os.fdopen(os.dup(descriptor), "rb"):
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                if force_to_disk:
                    os.fsync(file.fileno())
            temporary.replace(path)
        if force_to_disk:
            sync_folder(path.parent)
    except OSError as error:
        raise unwritable(path, error, raises, advice) from error
    finally:
        # A file that cannot be removed is swept up later; the error that is under way says more.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _open_new(temporary: Path) -> int:
    """Opens a new file for writing, locked while it is open: so that nobody takes it for one that was abandoned."""
    while True:
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        if _keep(descriptor):
            return descriptor
        os.close(descriptor)


def _keep(descriptor: int) -> bool:
    """Locks what this process has just made; False where another one has removed it before it could be locked."""
    with contextlib.suppress(BlockingIOError):
        try_lock(descriptor)
        return os.fstat(descriptor).st_nlink > 0
    return False


def remove_abandoned(path: Path) -> None:
    """Removes what killed processes were writing as `path`: files and folders beside it that nobody holds any more.

    What is being written is locked, on this machine or another one. Where the file system has no locks, nothing goes.
    """
    name = re.compile(re.escape(f"{WRITING}{path.name}.") + "[0-9a-z_]+")
    with contextlib.suppress(OSError):  # a folder that is not there, or whose names nobody may read
        for one in [entry for entry in path.parent.iterdir() if name.fullmatch(entry.name)]:
            with contextlib.suppress(OSError):
                _remove_unheld(one)


def _remove_unheld(path: Path) -> None:
    is_folder = stat.S_ISDIR(path.lstat().st_mode)
    how = os.O_RDONLY | os.O_DIRECTORY if is_folder else os.O_RDWR | os.O_NONBLOCK
    descriptor = os.open(path, how | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if try_lock(descriptor):
            if is_folder:
                shutil.rmtree(path)
            elif stat.S_ISREG(os.fstat(descriptor).st_mode):
                path.unlink()
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def working_folder_of(path: Path) -> Iterator[Path]:
    """Makes a folder beside `path` for what it is made of, which goes at the end; held as a file in writing is."""
    while True:
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f"{WRITING}{path.name}."))
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if _keep(descriptor):
            break
        os.close(descriptor)
    try:
        yield folder
    finally:
        os.close(descriptor)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def making_folder(path: Path) -> Iterator[Path]:
    """Makes a temporary folder beside `path`, which takes the name at the end, or goes if there is an error.

    The files in it are for the caller to force to the disk, by `sync_file` and `sync_folder`.
    """
    temporary = path.with_name(WRITING + path.name)
    temporary.mkdir()
    try:
        yield temporary
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)  # a full disk gets its space back at once
        raise
    sync_folder(path.parent)


def unwritable(path: Path, error: OSError, raises: type[DqrmError], advice: str | None = None) -> DqrmError:
    """Returns the error to raise for `path`: why it cannot be written, and what to do."""
    advice = advice or _ADVICE.get(error.errno or 0, "check the folder and its disk")
    return raises(f"{path} cannot be written ({error.strerror or error}); {advice}")


def sync_file(path: Path) -> None:
    """Forces to the disk what was written to a file, by whatever wrote it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Forces the names in a folder to the disk; a crash could forget them although the files are safe."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a folder and order its names themselves.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)


def set_aside(path: Path, why: str) -> None:
    """Renames a.json to a-{why}.json."""
    path.rename(path.with_name(f"{path.stem}-{why}{path.suffix}"))


def remove_folder(path: Path) -> None:
    """Removes a folder: renamed first, so that a crash on the way leaves no half of it under its name."""
    removing = path.with_name(_REMOVING + path.name)
    with contextlib.suppress(OSError):
        path.rename(removing)
        shutil.rmtree(removing)


def remove_leftovers(folder: Path) -> None:
    """Removes what a killed process was writing or removing; call it only where no other process writes."""
    for path in folder.iterdir():
        if path.name.startswith((WRITING, _REMOVING)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    path.unlink()


class NotRegularError(OSError):
    """A FIFO, device, socket or folder where a file was expected, or a file beyond its limit."""


def open_regular(path: Path) -> BinaryIO:
    """Opens a file for reading; a FIFO or device is refused at once instead of waiting for whoever writes it."""
    # Without O_NONBLOCK opening a FIFO would wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise NotRegularError(errno.EINVAL, "it is no regular file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def begins_with(path: Path, mark: bytes, at: int = 0) -> bool:
    """Says whether a file has `mark` at its byte `at`; one that cannot be read has not."""
    try:
        with open_regular(path) as file:
            return file.read(at + len(mark))[at:] == mark
    except OSError:
        return False


def read_regular(path: Path, most_bytes: int) -> bytes:
    """Reads a regular file that has at most `most_bytes`; OSError otherwise."""
    with open_regular(path) as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise NotRegularError(errno.EFBIG, f"it has more than {most_bytes:,} bytes", str(path))
    return content
