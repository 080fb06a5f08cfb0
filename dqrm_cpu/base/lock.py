"""A folder that one command at a time may work in: the operating system lets go of the lock, however a process ends."""

import contextlib
import errno
import fcntl
import os
import socket
import stat
from pathlib import Path
from types import TracebackType
from typing import Self

from dqrm_cpu.errors import DqrmError

_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF}
"""What file systems without locks answer; there, nothing keeps two commands apart."""


class FolderLock:
    """A lock on `folder/name`, held until it is closed or the process ends.

    flock reaches over the hosts of an NFS mount since Linux 2.6.12, unless it is mounted with local_lock. `held` is
    False where the file system has no locks.
    """

    def __init__(self, folder: Path, name: str, refusal: str, raises: type[DqrmError]) -> None:
        """Raises `raises` with `refusal`, and who holds the lock, where another process does."""
        self._descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
                raise OSError(errno.EINVAL, "it is no regular file", str(folder / name))
            self.held = try_lock(self._descriptor)
        except BlockingIOError:
            holder = os.pread(self._descriptor, 200, 0).decode(errors="replace").strip()
            os.close(self._descriptor)
            raise raises(f"{refusal} ({holder})" if holder else refusal) from None
        except BaseException:
            os.close(self._descriptor)
            raise
        # Who holds it is only information for others: a disk that cannot take it is no reason to stop.
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def close(self) -> None:
        """Lets go of the folder."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def try_lock(descriptor: int) -> bool:
    """Locks what is open until it is closed; BlockingIOError where another one has, False where there are no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise
    return True
