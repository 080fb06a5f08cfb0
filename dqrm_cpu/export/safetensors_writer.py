"""Writes a safetensors file piece by piece, so that tables of many GB need no second copy in memory.

`base/tensor_header.py` says what stands in the header: a CRC-32 of every MB among it, so that `PackedFile` checks what
it reads.
"""

import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.base.files import remove_abandoned, replacing, unwritable
from dqrm_cpu.base.tensor_header import (
    CHECKSUM_STRETCH,
    CHECKSUMS,
    DTYPES,
    HEADER_CHECKSUM,
    NO_CHECKSUM,
    header_checksum,
    with_header_checksum,
)
from dqrm_cpu.errors import CheckpointError

STRETCH_BYTES = 1 << 20
"""What one checksum stands for: small enough that a reader of a few rows reads little more than those."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNMENT = 8


@dataclass(frozen=True)
class Streamed:
    """A tensor that is made in parts while it is written."""

    name: str
    dtype: str  # as NumPy names it
    shape: tuple[int, ...]
    parts: Callable[[], Iterator[NDArray[np.generic]]]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def whole(name: str, array: NDArray[np.generic]) -> Streamed:
    """Returns a tensor that is there already."""
    return Streamed(name, str(array.dtype), array.shape, lambda: iter([array]))


def write_tensors(path: Path, tensors: Sequence[Streamed], metadata: Mapping[str, str]) -> int:
    """Writes the file, whole or not at all; returns its size in bytes."""
    data_bytes = sum(tensor.num_bytes for tensor in tensors)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error, CheckpointError) from error
    remove_abandoned(path)
    with replacing(path, CheckpointError) as file:
        # As long as the header that takes its place once the checksums are known.
        blank = _blank_header(tensors, metadata)
        file.write(blank)
        sums = Checksums()
        for tensor in tensors:
            written = 0
            for part in tensor.parts():
                raw = np.ascontiguousarray(part, dtype=tensor.dtype).reshape(-1).view(np.uint8)
                file.write(raw.data)
                sums.add(raw)
                written += raw.size
            assert written == tensor.num_bytes, f"{tensor.name}: {written} bytes instead of {tensor.num_bytes}"
        header = _header(tensors, metadata, sums.text())
        assert len(header) == len(blank)
        file.seek(0)
        file.write(header)
    return len(header) + data_bytes


def file_bytes(tensors: Sequence[Streamed], metadata: Mapping[str, str]) -> int:
    """Returns the size of the file that `write_tensors` would write; of the tensors nothing but their sizes counts."""
    return len(_blank_header(tensors, metadata)) + sum(tensor.num_bytes for tensor in tensors)


class Checksums:
    """CRC-32 of every stretch of bytes that are added one after another."""

    def __init__(self) -> None:
        self._done: list[int] = []
        self._crc = 0
        self._filled = 0

    def add(self, raw: NDArray[np.uint8]) -> None:
        """Adds the next bytes."""
        while raw.size:
            piece = raw[: STRETCH_BYTES - self._filled]
            self._crc = zlib.crc32(piece.data, self._crc)
            self._filled += piece.size
            raw = raw[piece.size :]
            if self._filled == STRETCH_BYTES:
                self._done.append(self._crc)
                self._crc = self._filled = 0

    def text(self) -> str:
        """Returns the checksums of all that was added; the last stretch may be shorter."""
        last = [self._crc] if self._filled else []
        return "".join(f"{crc:08x}" for crc in (*self._done, *last))


def _blank_header(tensors: Sequence[Streamed], metadata: Mapping[str, str]) -> bytes:
    """Returns a header without checksums, as long as the one that has them."""
    num_stretches = -(-sum(tensor.num_bytes for tensor in tensors) // STRETCH_BYTES)
    return _header(tensors, metadata, NO_CHECKSUM * num_stretches)


def _header(tensors: Sequence[Streamed], metadata: Mapping[str, str], checksums: str) -> bytes:
    checks = {CHECKSUM_STRETCH: str(STRETCH_BYTES), CHECKSUMS: checksums, HEADER_CHECKSUM: NO_CHECKSUM}
    described: dict[str, object] = {"__metadata__": {**metadata, **checks}}
    at = 0
    for tensor in tensors:
        end = at + tensor.num_bytes
        described[tensor.name] = {"dtype": _NAMES[tensor.dtype], "shape": tensor.shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(described).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    text = with_header_checksum(text, NO_CHECKSUM, header_checksum(text))
    return len(text).to_bytes(8, "little") + text
