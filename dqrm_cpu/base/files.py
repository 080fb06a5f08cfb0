"""Files that appear whole or not at all, and files that are read only if they are what they should be.

Everything that writes a file under its final name goes through `replacing`; everything that reads a small file of
somebody else's making goes through `read_regular`.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeAlias

from dqrm_cpu.errors import DqrmError

Piece: TypeAlias = "bytes | memoryview"

WRITING = ".writing-"
"""Begins the name of a file or folder that is being written; whoever owns the folder may remove what is left of it."""

_ADVICE = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "the quota is used up: free some space",
    errno.EROFS: "the disk is read-only: give another folder",
    errno.EACCES: "this user may not write there: give another folder",
    errno.EPERM: "this user may not write there: give another folder",
    errno.EIO: "the disk or the network failed: check it",
}


def replace_file(path: Path, pieces: Iterable[Piece], raises: type[DqrmError]) -> None:
    """Writes the pieces one after another as `path`, whole or not at all."""
    with replacing(path, raises) as file:
        for piece in pieces:
            file.write(piece)


@contextlib.contextmanager
def replacing(path: Path, raises: type[DqrmError]) -> Iterator[BinaryIO]:
    """Opens a temporary file beside `path`; at the end it is forced to the disk and takes the name.

    The temporary file is always a new one, so that a link which somebody put under its name is not followed. An
    OSError, also of the caller's own writing, becomes an error of the class `raises`.
    """
    temporary = path.with_name(f"{WRITING}{path.name}.{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise unwritable(path, error, raises) from error
    finally:
        # A file that cannot be removed is swept up later; the error that is under way says more.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def unwritable(path: Path, error: OSError, raises: type[DqrmError]) -> DqrmError:
    """The error to raise for `path`: why it cannot be written, and what to do."""
    advice = _ADVICE.get(error.errno or 0, "check the folder and its disk")
    return raises(f"{path} cannot be written ({error.strerror or error}); {advice}")


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


def remove_leftovers(folder: Path, pattern: str = f"{WRITING}*") -> None:
    """Removes files that a killed process was writing; call it only where no other process writes."""
    for path in folder.glob(pattern):
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


def read_regular(path: Path, most_bytes: int) -> bytes:
    """All bytes of a regular file that has at most `most_bytes`; OSError otherwise."""
    with open_regular(path) as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise NotRegularError(errno.EFBIG, f"it has more than {most_bytes:,} bytes", str(path))
    return content
