"""Reads a safetensors file that somebody else may have written, without mapping it: what is read has been checked.

A header that is too long, overlaps or holes between tensors, sizes that no shape explains and anything that is no
regular file are refused before memory is allocated; bytes without the checksum that was written are refused when they
are read. A file of format 1 has no checksums.
"""

import os
import zlib
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.base.files import open_regular
from dqrm_cpu.base.tensor_header import (
    DTYPES,
    LENGTH_BYTES,
    MOST_HEADER_BYTES,
    MOST_STRETCH_BYTES,
    DamagedHeaderError,
    ForeignHeaderError,
    read_header,
)
from dqrm_cpu.errors import CheckpointError


class DamagedFileError(CheckpointError):
    """Bytes of a packed file are not those that were written."""


class PackedFile:
    """An open file; `metadata` and `entries` are those of its header."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = open_regular(path)
        except OSError as error:
            reason = error.strerror or error if path.exists() else "there is no such file"
            raise CheckpointError(f"{path} cannot be read: {reason}; is it the right file?") from error
        try:
            self._read_header()
        except ForeignHeaderError as error:
            self._file.close()
            raise self.foreign(str(error)) from error
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def num_checksums(self) -> int:
        """How many stretches of the data have one; 0 of a file of format 1."""
        return len(self._checksums)

    @property
    def num_bytes(self) -> int:
        """The size of the whole file."""
        return self._data_start + self._data_bytes

    def foreign(self, why: str) -> CheckpointError:
        """Returns the error for a file that is not what `dqrm-cpu compress` writes."""
        return CheckpointError(f"{self.path} is no packed model: {why}; write it again by dqrm-cpu compress")

    def tensor(self, name: str) -> NDArray[Any]:
        """Reads all of a tensor; its entry has been compared with what is expected."""
        entry = self.entries[name]
        return self.rows(name, 0, entry.shape[0] if entry.shape else 1).reshape(entry.shape)

    def rows(self, name: str, first: int, end: int) -> NDArray[Any]:
        """Reads rows of a tensor, of the bytes that were written."""
        entry = self.entries[name]
        begin = entry.data_offsets[0]
        raw = self._checked(begin + first * entry.row_bytes, begin + end * entry.row_bytes)
        return raw.view(DTYPES[entry.dtype]).reshape(end - first, *entry.shape[1:])

    def check_all(self) -> None:
        """Reads every byte; DamagedFileError at the first stretch that is not as it was written."""
        at_once = self._stretch_bytes or MOST_STRETCH_BYTES
        for begin in range(0, self._data_bytes, at_once):
            self._checked(begin, min(begin + at_once, self._data_bytes))

    def _checked(self, begin: int, end: int) -> NDArray[np.uint8]:
        """Reads bytes of the data, of stretches that have their checksums."""
        if not self._stretch_bytes or begin == end:
            return self._read(begin, end)
        stretch = self._stretch_bytes
        first, last = begin // stretch, -(-end // stretch)
        wide = self._read(first * stretch, min(last * stretch, self._data_bytes))
        for number in range(first, last):
            at = (number - first) * stretch
            if zlib.crc32(wide[at : at + stretch].data) != self._checksums[number]:
                here = self._data_start + number * stretch
                raise DamagedFileError(
                    f"{self.path} is damaged: its bytes {here:,} to {here + len(wide[at : at + stretch]):,} are not "
                    "those that were written; copy it again, or write it again by dqrm-cpu compress"
                )
        return wide[begin - first * stretch : end - first * stretch]

    def _read(self, begin: int, end: int) -> NDArray[np.uint8]:
        found = np.empty(end - begin, dtype=np.uint8)
        self._read_into(found, self._data_start + begin)
        return found

    def _read_into(self, into: NDArray[np.uint8], at: int) -> None:
        done = 0
        try:
            while done < into.size:
                count = os.preadv(self._file.fileno(), [into[done:].data], at + done)
                if count == 0:
                    raise DamagedFileError(f"{self.path} ends before its data do: it was cut while it was read")
                done += count
        except OSError as error:
            raise DamagedFileError(f"{self.path} cannot be read: {error.strerror or error}; check the disk") from error

    def _read_header(self) -> None:
        size = os.fstat(self._file.fileno()).st_size
        if size < LENGTH_BYTES:
            raise self.foreign(f"it has {size} bytes")
        length = np.empty(LENGTH_BYTES, dtype=np.uint8)
        self._read_into(length, 0)
        header_bytes = int.from_bytes(length.tobytes(), "little")
        if header_bytes > min(size - LENGTH_BYTES, MOST_HEADER_BYTES):
            raise self.foreign(f"its header would have {header_bytes:,} bytes, the file has {size:,}")
        raw = np.empty(header_bytes, dtype=np.uint8)
        self._read_into(raw, LENGTH_BYTES)
        self._data_start, self._data_bytes = LENGTH_BYTES + header_bytes, size - LENGTH_BYTES - header_bytes
        try:
            header = read_header(raw.tobytes(), self._data_bytes)
        except DamagedHeaderError:
            raise DamagedFileError(
                f"{self.path} is no packed model, or its header is damaged: it has not the checksum that it names; "
                "copy it again, or write it again by dqrm-cpu compress"
            ) from None
        self.metadata, self.entries = header.metadata, header.entries
        self._stretch_bytes, self._checksums = header.stretch_bytes, header.checksums
