"""Reads one safetensors shard of a checkpoint, and believes nothing of its header that its bytes do not bear out.

Rows come as arrays of NumPy: what reads a checkpoint to export or to describe it does without torch.

The format: the length of a JSON header in 8 bytes, the header, then the tensors' bytes. Files are read, never mapped:
one that is cut short meanwhile is an error, not a signal.
"""

import math
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.base.decode import UnreadableError, decoded, parse_json
from dqrm_cpu.base.files import open_regular
from dqrm_cpu.errors import CheckpointError
from dqrm_cpu.kernels.row_forms import NOT_FINITE

_LENGTH_BYTES = 8
_MOST_HEADER_BYTES = 64 << 20

BFLOAT16 = "bfloat16"

DTYPES: Mapping[str, tuple[str, np.dtype[Any]]] = MappingProxyType(
    {
        "float64": ("F64", np.dtype("<f8")),
        "float32": ("F32", np.dtype("<f4")),
        "float16": ("F16", np.dtype("<f2")),
        BFLOAT16: ("BF16", np.dtype("<u2")),  # NumPy has no such numbers: their bits
        "int64": ("I64", np.dtype("<i8")),
        "int32": ("I32", np.dtype("<i4")),
        "int16": ("I16", np.dtype("<i2")),
        "int8": ("I8", np.dtype("i1")),
        "uint8": ("U8", np.dtype("u1")),
        "bool": ("BOOL", np.dtype("?")),
    }
)
"""What a tensor of a checkpoint can hold: torch's name, that of safetensors, and the type in which it is read."""

_EXPONENT = 0x7F80
"""The bits of a bfloat16 that are all set where it is no finite number."""

_CHECKED_AT_ONCE = 1 << 16


class DamagedCheckpointError(CheckpointError):
    """Files are missing, cut short or changed since they were written; an earlier checkpoint may still be good."""


class ShardTensor(NamedTuple):
    """Rows of a tensor as a shard should hold them, at least one."""

    name: str
    dtype: str  # a key of DTYPES
    shape: tuple[int, ...]
    num_bytes: int


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    """The description of a tensor in a header."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


class ShardReader:
    """An open shard whose header names exactly the expected parts, one after another, up to the end of the file."""

    def __init__(self, path: Path, num_bytes: int, parts: Sequence[ShardTensor]) -> None:
        self._path = path
        self._parts = {part.name: part for part in parts}
        try:
            self._file = open_regular(path)
        except OSError as error:
            raise self._unreadable(error) from error
        try:
            size = os.fstat(self._file.fileno()).st_size
            if size != num_bytes:
                raise damaged(path, f"it has {size:,} bytes and was written with {num_bytes:,}")
            self._starts = self._read_header(size)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def tensor(self, name: str) -> NDArray[Any]:
        """Reads all rows of a part."""
        return self.rows(name, 0, self._parts[name].shape[0])

    def rows(self, name: str, first: int, end: int) -> NDArray[Any]:
        """Reads rows `first` to `end` of a part."""
        part = self._parts[name]
        row_bytes = part.num_bytes // part.shape[0]
        content = np.empty((end - first) * row_bytes, np.uint8)
        self._read_into(content.data, self._starts[name] + first * row_bytes)
        found = content.view(DTYPES[part.dtype][1]).reshape(end - first, *part.shape[1:])
        if not _all_finite(found):
            raise damaged(self._path, f"{name[:80]} holds NaN or infinite numbers, which no run saves")
        return found

    def crc32(self, at_once: int = 1 << 20) -> int:
        """Computes the checksum of the whole file."""
        checksum, at = 0, 0
        size = os.fstat(self._file.fileno()).st_size
        buffer = memoryview(bytearray(at_once))
        while at < size:
            block = buffer[: min(at_once, size - at)]
            self._read_into(block, at)
            checksum = zlib.crc32(block, checksum)
            at += len(block)
        return checksum

    def _read_header(self, size: int) -> dict[str, int]:
        """Returns where the bytes of each part begin."""
        if size < _LENGTH_BYTES:
            raise damaged(self._path, "it is too short for a shard")
        length = int.from_bytes(self._read(_LENGTH_BYTES, 0), "little")
        if length > min(size - _LENGTH_BYTES, _MOST_HEADER_BYTES):
            raise damaged(self._path, f"its header would have {length:,} bytes")
        try:
            document: Any = parse_json(self._read(length, _LENGTH_BYTES))
            document = dict(decoded(document, dict[str, Any]))
            document.pop("__metadata__", None)
            entries = decoded(document, dict[str, _Entry])
        except UnreadableError as error:
            raise damaged(self._path, f"its header {error}") from error
        if entries.keys() != self._parts.keys():
            raise damaged(self._path, "its header names other tensors than state.json does")
        return self._starts_of(entries, _LENGTH_BYTES + length, size)

    def _starts_of(self, entries: Mapping[str, _Entry], data_start: int, size: int) -> dict[str, int]:
        starts, at = {}, 0
        for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
            part = self._parts[name]
            if (entry.dtype, entry.shape) != (DTYPES[part.dtype][0], part.shape):
                found = f"{entry.dtype[:20]} of shape {str(list(entry.shape))[:80]}"
                raise damaged(self._path, f"its header says {found} of {name[:80]}, state.json another")
            if entry.data_offsets != (at, at + part.num_bytes):
                raise damaged(self._path, f"the bytes of {name[:80]} do not lie where and as many as they should")
            starts[name] = data_start + at
            at += part.num_bytes
        if data_start + at != size:
            raise damaged(self._path, f"its tensors end at byte {data_start + at:,} of {size:,}")
        return starts

    def _read(self, num_bytes: int, at: int) -> bytes:
        content = bytearray(num_bytes)
        self._read_into(memoryview(content), at)
        return bytes(content)

    def _read_into(self, into: memoryview, at: int) -> None:
        done = 0
        try:
            while done < len(into):
                count = os.preadv(self._file.fileno(), [into[done:]], at + done)
                if count == 0:
                    raise damaged(self._path, "it was cut short while it was read")
                done += count
        except OSError as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: OSError) -> DamagedCheckpointError:
        return DamagedCheckpointError(
            f"{self._path} cannot be read ({error.strerror or error}); use another checkpoint"
        )


def _all_finite(values: NDArray[Any]) -> bool:
    """Tells whether no value is NaN or infinite, by the least and the largest: without a mask, one time from memory.

    Of bytes, which are rows of tables: whether all have a finite scale.
    """
    if values.dtype == np.uint8:
        return values.ndim < 2 or not bool((values[:, -1] == NOT_FINITE).any())
    flat = values.reshape(-1)
    parts = (flat[first : first + _CHECKED_AT_ONCE] for first in range(0, flat.size, _CHECKED_AT_ONCE))
    if flat.dtype == DTYPES[BFLOAT16][1]:
        return not any(((part & _EXPONENT) == _EXPONENT).any() for part in parts)
    return flat.dtype.kind != "f" or all(math.isfinite(part.min()) and math.isfinite(part.max()) for part in parts)


def damaged(path: Path, why: str) -> DamagedCheckpointError:
    """Makes the error for a file that is not as a checkpoint wrote it."""
    return DamagedCheckpointError(f"{path} is damaged: {why}; use another checkpoint")
