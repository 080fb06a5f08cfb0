"""Files that appear whole or not at all."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeAlias

from dqrm_cpu.errors import DataError

Piece: TypeAlias = "bytes | memoryview"


def replace_file(path: Path, pieces: Iterable[Piece]) -> None:
    """Writes the pieces one after another under a temporary name, forces them to the disk, then gives the name."""
    with replacing(path) as file:
        for piece in pieces:
            file.write(piece)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write under a temporary name; afterwards it is forced to the disk and gets its own."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror}); is there room, and may you write?") from error
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Without it a crash could forget the name although the bytes are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
