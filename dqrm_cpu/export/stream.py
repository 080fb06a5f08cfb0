"""Writes a safetensors file piece by piece, so that tables of many GB need no second copy in memory.

The format: the length of a JSON header in 8 bytes, the header padded with spaces, then the tensors' bytes.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.base.files import Piece, replace_file, unwritable
from dqrm_cpu.errors import CheckpointError

_NAMES = {"uint8": "U8", "int8": "I8", "int16": "I16", "int32": "I32", "float16": "F16", "float32": "F32"}
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
    """A tensor that is there already."""
    return Streamed(name, str(array.dtype), array.shape, lambda: iter([array]))


def write_tensors(path: Path, tensors: Sequence[Streamed], metadata: Mapping[str, str]) -> int:
    """Whole or not at all; returns the size of the file in bytes."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error, CheckpointError) from error
    header = _header(tensors, metadata)
    replace_file(path, chain([header], _pieces(tensors)), CheckpointError)
    return len(header) + sum(tensor.num_bytes for tensor in tensors)


def _pieces(tensors: Sequence[Streamed]) -> Iterator[Piece]:
    for tensor in tensors:
        written = 0
        for part in tensor.parts():
            piece = np.ascontiguousarray(part, dtype=tensor.dtype).data
            written += piece.nbytes
            yield piece
        assert written == tensor.num_bytes, f"{tensor.name}: {written} bytes instead of {tensor.num_bytes}"


def _header(tensors: Sequence[Streamed], metadata: Mapping[str, str]) -> bytes:
    described: dict[str, object] = {"__metadata__": dict(metadata)}
    at = 0
    for tensor in tensors:
        end = at + tensor.num_bytes
        described[tensor.name] = {"dtype": _NAMES[tensor.dtype], "shape": tensor.shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(described).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
