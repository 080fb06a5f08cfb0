"""NumPy's .npy files. Read are those that somebody else may have written: numbers only, no more than the file holds.

NumPy's own reader allocates what a header asks for before it looks whether the file has it.
"""

import ast
import contextlib
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.base.decode import UnreadableError
from dqrm_cpu.base.files import open_regular

_MAGIC = b"\x93NUMPY"
_LENGTH_BYTES = {1: 2, 2: 4, 3: 4}
_LONGEST_HEADER = 10_000
_NUMBERS = re.compile(r"[<>|=]?[biuf]\d{1,2}")
_KEYS = {"descr", "fortran_order", "shape"}
_BLOCK_BYTES = 8 << 20


class NpyHeader(NamedTuple):
    """The type and shape of the array that stands behind the header."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran_order: bool

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_npy_header(file: IO[bytes]) -> NpyHeader:
    """Reads the header and leaves the file where the values start; UnreadableError says what is wrong with it."""
    start = file.read(len(_MAGIC) + 2)
    length_bytes = _LENGTH_BYTES.get(start[len(_MAGIC)] if len(start) == len(_MAGIC) + 2 else 0)
    if not start.startswith(_MAGIC) or length_bytes is None:
        raise UnreadableError("is no .npy file")
    length = int.from_bytes(file.read(length_bytes), "little")
    if length > _LONGEST_HEADER:
        raise UnreadableError(f"has a header of {length:,} bytes")
    text = file.read(length)
    try:
        fields = ast.literal_eval(text.decode("latin-1").strip())
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        raise UnreadableError("has a header that is none") from None
    if not isinstance(fields, dict) or set(fields) != _KEYS:
        raise UnreadableError("has a header with other fields")
    shape, order = fields["shape"], fields["fortran_order"]
    if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape):
        raise UnreadableError("has a header without a shape")
    return NpyHeader(shape, _dtype(fields["descr"]), order is True)


def npy_header(kind: np.dtype[Any], count: int) -> bytes:
    """Returns what stands before the values of an array of one dimension."""
    description = f"{{'descr': '{kind.str}', 'fortran_order': False, 'shape': ({count},), }}"
    padding = -(len(description) + 11) % 64
    text = description.encode() + b" " * padding + b"\n"
    return _MAGIC + b"\x01\x00" + len(text).to_bytes(2, "little") + text


def map_npy(path: Path) -> NDArray[Any]:
    """Maps the values; UnreadableError where the file does not hold what its header says."""
    with open_regular(path) as file:
        header = read_npy_header(file)
        place, size = file.tell(), os.fstat(file.fileno()).st_size
        if place + header.num_bytes != size:
            raise UnreadableError(f"has {size - place:,} bytes of values, its header says {header.num_bytes:,}")
        if not header.num_bytes:
            return np.zeros(header.shape, header.dtype)
        order: Literal["C", "F"] = "F" if header.fortran_order else "C"
        values: NDArray[Any] = np.memmap(file, header.dtype, "r", place, header.shape, order)
        return values


def read_npy(path: Path, advance: Callable[[int], object]) -> tuple[NDArray[Any], int]:
    """Reads an array of one dimension into memory, and its CRC-32; `advance` hears how many bytes more it has.

    UnreadableError where the file holds no such array.
    """
    from isal import isal_zlib  # here, because whoever only maps files does without it

    mapped = map_npy(path)
    if mapped.ndim != 1:
        raise UnreadableError("is damaged: it holds no list of numbers")
    values, crc32 = np.empty(mapped.shape, mapped.dtype), 0
    count = max(1, _BLOCK_BYTES // max(mapped.itemsize, 1))
    for start in range(0, mapped.size, count):
        block = values[start : start + count]
        block[:] = mapped[start : start + count]
        crc32 = isal_zlib.crc32(block.data.cast("B"), crc32)
        advance(block.nbytes)
    return values, crc32


def _dtype(described: object) -> np.dtype[Any]:
    """Returns the type of plain numbers; NumPy is asked of nothing else, because it evaluates what it is given."""
    if isinstance(described, str) and _NUMBERS.fullmatch(described):
        with contextlib.suppress(TypeError, ValueError):  # of a size that there is none of
            return np.dtype(described)
    raise UnreadableError("holds no plain numbers")
