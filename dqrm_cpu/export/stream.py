"""Writes a safetensors file piece by piece, so that tables of many GB need no second copy in memory.

The format: the length of a JSON header in 8 bytes, the header padded with spaces, then the tensors' bytes.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

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
    temporary = path.with_name(f".writing-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(_header(tensors, metadata))
            for tensor in tensors:
                start = file.tell()
                for part in tensor.parts():
                    file.write(np.ascontiguousarray(part, dtype=tensor.dtype).data)
                written = file.tell() - start
                assert written == tensor.num_bytes, f"{tensor.name}: {written} bytes instead of {tensor.num_bytes}"
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(
            f"{path} could not be written: {error}; free some space or choose another folder"
        ) from error
    return path.stat().st_size


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
