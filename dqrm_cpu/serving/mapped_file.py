"""A model file mapped into memory: what is looked up is read when it is looked up, by the pages that it lies in."""

import copy
import mmap
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.base.files import open_regular
from dqrm_cpu.base.tensor_header import (
    DTYPES,
    LENGTH_BYTES,
    MOST_HEADER_BYTES,
    DamagedHeaderError,
    ForeignHeaderError,
    read_header,
)
from dqrm_cpu.errors import CheckpointError
from dqrm_cpu.serving.description import entries_by_member, member_tensor

_RELEASED_BYTES = 32 << 20
"""After so many bytes of a file that is read to its end, the pages read before are let go."""

_ADVICE = "copy it again, or export it again"


class MappedFile:
    """An open model file; `metadata` and `entries` are those of its header, which has been checked against its size.

    The file must not be cut or written over while it is open; a new one may take its name at any time.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._member = 1
        try:
            with open_regular(path) as file:
                size = os.fstat(file.fileno()).st_size
                head = file.read(LENGTH_BYTES)
                length = int.from_bytes(head, "little")
                if len(head) < LENGTH_BYTES or length > min(size - LENGTH_BYTES, MOST_HEADER_BYTES):
                    raise self.foreign(f"its header would have {length:,} bytes, the file has {size:,}")
                self._start = LENGTH_BYTES + length
                self._header = read_header(file.read(length), size - self._start)
                self._mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                self._memory = memoryview(self._mapping)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}; is it the right file?") from error
        except ForeignHeaderError as error:
            raise self.foreign(str(error)) from error
        except DamagedHeaderError:
            raise CheckpointError(f"{path} is damaged: its header is not the one that was written; {_ADVICE}") from None
        self.metadata, self.entries = self._header.metadata, self._header.entries

    def foreign(self, why: str) -> CheckpointError:
        """Returns the error for a file that is not what `dqrm-cpu export` writes."""
        return CheckpointError(f"{self.path} is no exported model: {why}; write it by dqrm-cpu export")

    def tensor(self, name: str, dtype: str, shape: tuple[int | None, ...]) -> NDArray[Any]:
        """Returns a read-only view of a tensor; CheckpointError unless it has this type and shape, None for any."""
        entry = self.entries.get(name)
        if entry is None:
            raise self.foreign(f"it lacks {member_tensor(self._member, name)[:80]}")
        fits = len(entry.shape) == len(shape) and all(
            wanted is None or found == wanted for found, wanted in zip(entry.shape, shape, strict=True)
        )
        if entry.dtype != dtype or not fits:
            raise self.foreign(f"{name[:80]} is {entry.dtype} {list(entry.shape)}, its description wants {list(shape)}")
        return self.bytes(*entry.data_offsets).view(DTYPES[dtype]).reshape(entry.shape)

    def bytes(self, begin: int, end: int) -> NDArray[np.uint8]:
        """Returns a read-only view of bytes of the data, from tensors whose places have been checked."""
        return np.frombuffer(self._memory[self._start + begin : self._start + end], np.uint8)

    def require_intact(self, names: Iterable[str] | None = None) -> None:
        """Compares the bytes of these tensors, or of all, with their checksums; CheckpointError where they differ."""
        stretch, checksums = self._header.stretch_bytes, self._header.checksums
        if not checksums:
            raise self.foreign("it has no checksums")
        chosen = self.entries if names is None else names
        numbers: set[int] = set()
        for name in chosen:
            begin, end = self.entries[name].data_offsets
            numbers.update(range(begin // stretch, -(-end // stretch)))
        for count, number in enumerate(sorted(numbers), 1):
            if count * stretch % _RELEASED_BYTES < stretch:
                self.release()
            at = self._start + number * stretch
            if zlib.crc32(self._memory[at : at + stretch]) != checksums[number]:
                raise CheckpointError(
                    f"{self.path} is damaged: its bytes from {at:,} on are not those that were written; {_ADVICE}"
                )

    def members(self, count: int) -> list[Self]:
        """Returns the file as each member of an ensemble has it: its tensors by the names of a single model.

        CheckpointError where the file has not so many.
        """
        by_member = entries_by_member(self.entries, count)
        if by_member is None:
            raise self.foreign(f"its description has {count} members, its tensors are of another number")
        views = []
        for number, entries in enumerate(by_member, 1):
            view = copy.copy(self)
            view.entries, view._member = entries, number
            views.append(view)
        return views

    def release(self) -> None:
        """Lets go of the pages that have been read, so that they do not count as memory of this process any more."""
        self._mapping.madvise(mmap.MADV_DONTNEED)
