"""One command at a time in an output folder: two would train the same runs into the same folders."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dqrm_cpu.errors import ConfigError

_FILE_NAME = ".lock"


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """The operating system lets go of the lock, however the process ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _FILE_NAME).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another dqrm-cpu reproduce works in {folder}; wait for it, or give another --out"
            ) from None
        yield
