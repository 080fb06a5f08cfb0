"""Rows of a data set that another program prepared, in the order of its files."""

import lzma
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.base.decode import UnreadableError
from dqrm_cpu.base.npy import read_npy_header
from dqrm_cpu.data.store.manifest import SourceFile
from dqrm_cpu.errors import DataError

BLOCK_ROWS = 1 << 19
"""Rows that are converted at a time: about 250 MB."""

_MOST_COUNT_BYTES = 1 << 20

UNREADABLE_ARCHIVE = (
    *(UnreadableError, OSError, EOFError, KeyError, ValueError, RuntimeError, MemoryError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)
"""What reading an archive can raise: also of one that is encrypted, or packed in a way that is not known."""


class ForeignBlock(NamedTuple):
    """A block of n rows of one part."""

    part: str
    label: NDArray[np.uint8]
    dense: NDArray[np.float32]  # [n, num_dense] log(x + 1)
    clamped: NDArray[np.int64]  # [num_dense] negative numbers that were taken as 0
    ids: NDArray[np.integer]  # [T, n] as found


class RowRange(NamedTuple):
    """Rows start to stop - 1 of a file, which belong to one part."""

    part: str
    start: int
    stop: int


class Foreign(Protocol):
    """A data set of another program."""

    description: str
    sources: tuple[SourceFile, ...]
    num_rows: int
    num_dense: int
    num_tables: int
    table_rows: tuple[int, ...] | None  # where its files say

    def blocks(self) -> Iterator[ForeignBlock]:
        """Yields every row once, part by part or not, at most BLOCK_ROWS at a time."""


def read_counts(path: Path, key: str) -> tuple[int, ...]:
    """Reads the whole numbers in one array of an .npz file; DataError where it has none or too many."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as file:
            header = read_npy_header(file)
            if header.dtype.kind not in "iu" or len(header.shape) != 1 or header.num_bytes > _MOST_COUNT_BYTES:
                raise UnreadableError(f"has {header.dtype} {header.shape} as {key}, not one whole number per column")
            content = file.read(header.num_bytes)
            if len(content) != header.num_bytes:
                raise UnreadableError(f"ends within {key}")
    except UNREADABLE_ARCHIVE as error:
        raise DataError(f"{path} cannot be read ({error}); copy it again or take it away") from error
    counts = tuple(np.frombuffer(content, header.dtype).tolist())
    if min(counts, default=0) < 0:
        raise DataError(f"{path} has {min(counts)} as a number of {key}; copy it again or take it away")
    return counts


def split(ranges: Iterable[RowRange]) -> Iterator[RowRange]:
    """Cuts ranges into pieces of at most BLOCK_ROWS."""
    for part, first, stop in ranges:
        for start in range(first, stop, BLOCK_ROWS):
            yield RowRange(part, start, min(start + BLOCK_ROWS, stop))


def held_out(start: int, stop: int) -> tuple[RowRange, RowRange]:
    """Returns the last day's halves as DLRM's loader names them: the first is the test part, the second validates."""
    middle = start + -(-(stop - start) // 2)
    return RowRange("test", start, middle), RowRange("validation", middle, stop)


def labels_of(values: NDArray[np.generic], where: str) -> NDArray[np.uint8]:
    """Converts labels of any type; DataError unless each is 0 or 1."""
    wrong = (values != 0) & (values != 1)
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(
            f"{where}: label {values[row]} at row {row} of a block; labels are 0 or 1: is the layout right?"
        )
    return values.astype(np.uint8)


def log_of_counts(values: NDArray[np.integer]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Returns log(x + 1) of integers [n, num_dense], negative ones as 0, and how many of those each column has."""
    negative = values < 0
    logs = np.log(np.where(negative, 0, values).astype(np.float32) + np.float32(1))
    return logs, negative.sum(axis=0, dtype=np.int64)
