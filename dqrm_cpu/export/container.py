"""Reads a safetensors file that somebody else may have written, without mapping it: what is read has been checked.

A header that is too long, overlaps or holes between tensors, sizes that no shape explains and anything that is no
regular file are refused before memory is allocated; bytes without the checksum that was written are refused when they
are read. A file of format 1 has no checksums.
"""

import math
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.base.decode import UnreadableError, decoded, parse_json
from dqrm_cpu.base.files import open_regular
from dqrm_cpu.errors import CheckpointError
from dqrm_cpu.export.stream import (
    CHECKSUM_STRETCH,
    CHECKSUMS,
    DTYPES,
    HEADER_CHECKSUM,
    NO_CHECKSUM,
    header_checksum,
    with_header_checksum,
)

_LENGTH_BYTES = 8
_MOST_HEADER_BYTES = 4 << 20
"""Checksums of 400 GB; a hostile header of that length becomes some 100 MB of Python objects."""

_MOST_STRETCH_BYTES = 64 << 20
_MOST_DIMENSIONS = 8
_CRC_DIGITS = 8
_FORMAT_WITH_CHECKSUMS = "2"


class DamagedFileError(CheckpointError):
    """Bytes of a packed file are not those that were written."""


@dataclass(frozen=True)
class Entry:
    """A tensor as the header describes it."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]

    @property
    def row_bytes(self) -> int:
        """Bytes of what one index of the first dimension stands for."""
        return math.prod(self.shape[1:]) * np.dtype(DTYPES[self.dtype]).itemsize


class PackedFile:
    """An open file; `metadata` and `entries` are those of its header."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = open_regular(path)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}; is it the right file?") from error
        try:
            self._read_header()
        except UnreadableError as error:
            self._file.close()
            raise self.foreign(f"its header {error}") from error
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
        """Of the whole file."""
        return self._data_start + self._data_bytes

    def foreign(self, why: str) -> CheckpointError:
        """The error for a file that is not what `dqrm-cpu compress` writes."""
        return CheckpointError(f"{self.path} is no packed model: {why}; write it again by dqrm-cpu compress")

    def tensor(self, name: str) -> NDArray[Any]:
        """All of a tensor; its entry has been compared with what is expected."""
        entry = self.entries[name]
        return self.rows(name, 0, entry.shape[0] if entry.shape else 1).reshape(entry.shape)

    def rows(self, name: str, first: int, end: int) -> NDArray[Any]:
        """Rows of a tensor, of the bytes that were written."""
        entry = self.entries[name]
        begin = entry.data_offsets[0]
        raw = self._checked(begin + first * entry.row_bytes, begin + end * entry.row_bytes)
        return raw.view(DTYPES[entry.dtype]).reshape(end - first, *entry.shape[1:])

    def check_all(self) -> None:
        """Reads every byte; DamagedFileError at the first stretch that is not as it was written."""
        at_once = self._stretch_bytes or _MOST_STRETCH_BYTES
        for begin in range(0, self._data_bytes, at_once):
            self._checked(begin, min(begin + at_once, self._data_bytes))

    def _checked(self, begin: int, end: int) -> NDArray[np.uint8]:
        """uint8 of the data, of stretches that have their checksums."""
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
        if size < _LENGTH_BYTES:
            raise self.foreign(f"it has {size} bytes")
        length = np.empty(_LENGTH_BYTES, dtype=np.uint8)
        self._read_into(length, 0)
        header_bytes = int.from_bytes(length.tobytes(), "little")
        if header_bytes > min(size - _LENGTH_BYTES, _MOST_HEADER_BYTES):
            raise self.foreign(f"its header would have {header_bytes:,} bytes, the file has {size:,}")
        raw = np.empty(header_bytes, dtype=np.uint8)
        self._read_into(raw, _LENGTH_BYTES)
        self._data_start, self._data_bytes = _LENGTH_BYTES + header_bytes, size - _LENGTH_BYTES - header_bytes
        text = raw.tobytes()
        document = dict(decoded(parse_json(text), dict[str, Any]))
        self.metadata: Mapping[str, str] = decoded(document.pop("__metadata__", {}), dict[str, str])
        self.entries: Mapping[str, Entry] = decoded(document, dict[str, Entry])
        self._require_sound_entries()
        self._read_checksums(text)

    def _require_sound_entries(self) -> None:
        """Tensors lie one after another, without overlap or hole, each as large as its shape, up to the file's end."""
        at = 0
        for name, entry in sorted(self.entries.items(), key=lambda item: item[1].data_offsets):
            begin, end = entry.data_offsets
            if entry.dtype not in DTYPES:
                raise self.foreign(f"its tensor {name[:80]} has the type {entry.dtype[:20]}")
            if len(entry.shape) > _MOST_DIMENSIONS or any(not 0 <= count < 1 << 48 for count in entry.shape):
                raise self.foreign(f"its tensor {name[:80]} has an impossible shape")
            if begin != at or end - begin != math.prod(entry.shape) * np.dtype(DTYPES[entry.dtype]).itemsize:
                raise self.foreign(f"its tensor {name[:80]} does not lie where and as large as its shape says")
            at = end
        if at != self._data_bytes:
            raise self.foreign(f"its tensors have {at:,} bytes, and {self._data_bytes:,} are there")

    def _read_checksums(self, header: bytes) -> None:
        self._stretch_bytes = 0
        self._checksums: tuple[int, ...] = ()
        if self.metadata.get("format") == "1":
            return
        found = self.metadata.get(HEADER_CHECKSUM, "")
        if not found and self.metadata.get("format", _FORMAT_WITH_CHECKSUMS) != _FORMAT_WITH_CHECKSUMS:
            return  # whoever asks for the format refuses it
        if header_checksum(with_header_checksum(header, found, NO_CHECKSUM)) != found:
            raise DamagedFileError(
                f"{self.path} is no packed model, or its header is damaged: it has not the checksum that it names; "
                "copy it again, or write it again by dqrm-cpu compress"
            )
        try:
            stretch, text = int(self.metadata[CHECKSUM_STRETCH]), self.metadata[CHECKSUMS]
            places = range(0, len(text), _CRC_DIGITS)
            checksums = tuple(int(text[at : at + _CRC_DIGITS], 16) for at in places)
        except (KeyError, ValueError):
            raise self.foreign("its checksums cannot be read") from None
        if not 0 < stretch <= _MOST_STRETCH_BYTES or len(checksums) != -(-self._data_bytes // stretch):
            raise self.foreign("its checksums do not belong to its data")
        self._stretch_bytes, self._checksums = stretch, checksums
