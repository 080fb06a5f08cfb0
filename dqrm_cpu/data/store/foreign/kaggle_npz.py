"""DLRM's kaggleAdDisplayChallenge_processed.npz: X_int, X_cat, y and counts of all days, one after another.

The arrays are read as streams out of the archive: whole, they take 7 GB.
"""

import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.base.npy import read_npy_header
from dqrm_cpu.data.store.foreign.blocks import (
    UNREADABLE_ARCHIVE,
    ForeignBlock,
    RowRange,
    held_out,
    labels_of,
    log_of_counts,
    read_counts,
    split,
)
from dqrm_cpu.data.store.manifest import SourceFile
from dqrm_cpu.errors import DataError

_DAYS = 7
_KEYS = ("X_int", "X_cat", "y", "counts")


class KaggleNpz:
    """Six days to train on, the seventh halved; days are of equal length unless a *_day_count.npz says otherwise."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.description = "DLRM's processed .npz"
        try:
            with zipfile.ZipFile(path) as archive:
                with archive.open("X_int.npy") as file:
                    self.num_rows, self.num_dense = _read_head(file, path, "X_int", 2).shape
                with archive.open("X_cat.npy") as file:
                    rows, self.num_tables = _read_head(file, path, "X_cat", 2).shape
                with archive.open("y.npy") as file:
                    labels = _read_head(file, path, "y", 1).shape[0]
        except UNREADABLE_ARCHIVE as error:
            raise DataError(f"{path} is not DLRM's processed file ({error}); it holds {', '.join(_KEYS)}") from error
        counts = read_counts(path, "counts")
        if not self.num_rows == rows == labels or len(counts) != self.num_tables:
            raise DataError(f"{path}: X_int, X_cat, y and counts do not belong together; process the raw file again")
        self.table_rows: tuple[int, ...] | None = counts
        self.sources: tuple[SourceFile, ...] = (SourceFile(path.name, path.stat().st_size, "", self.num_rows),)

    def blocks(self) -> Iterator[ForeignBlock]:
        """Yields rows in the order of the file: the training days, then the halves of the last."""
        last_day = self.num_rows - self._days()[-1]
        ranges = (RowRange("train", 0, last_day), *held_out(last_day, self.num_rows))
        try:
            yield from self._blocks(ranges)
        except UNREADABLE_ARCHIVE as error:
            raise DataError(f"{self._path} cannot be read ({error}); copy it again") from error

    def _blocks(self, ranges: tuple[RowRange, ...]) -> Iterator[ForeignBlock]:
        with ExitStack() as stack:
            archive = stack.enter_context(zipfile.ZipFile(self._path))
            files = [stack.enter_context(archive.open(f"{key}.npy")) for key in _KEYS[:3]]
            dimensions = (2, 2, 1)
            heads = [_read_head(f, self._path, k, d) for f, k, d in zip(files, _KEYS[:3], dimensions, strict=True)]
            for piece in split(ranges):
                integers, ids, label = (
                    _read_rows(file, head, piece.stop - piece.start, self._path)
                    for file, head in zip(files, heads, strict=True)
                )
                where = f"{self._path} from row {piece.start}"
                yield ForeignBlock(piece.part, labels_of(label, where), *log_of_counts(integers), ids.T)

    def _days(self) -> list[int]:
        for path in sorted(self._path.parent.glob("*_day_count.npz")):
            days = list(read_counts(path, "total_per_file"))
            if sum(days) == self.num_rows:
                return days
        each, extra = divmod(self.num_rows, _DAYS)
        return [each + (day < extra) for day in range(_DAYS)]


class _Head(NamedTuple):
    shape: tuple[int, ...]
    kind: np.dtype[np.integer]


def _read_head(file: IO[bytes], path: Path, key: str, dimensions: int) -> _Head:
    """Leaves the file where the values start."""
    shape, kind, column_order = read_npy_header(file)
    if len(shape) != dimensions or (column_order and dimensions > 1) or kind.kind not in "iu":
        raise DataError(f"{path}: {key} is {kind} {shape}; DLRM writes integers, row by row")
    return _Head(shape, kind)


def _read_rows(file: IO[bytes], head: _Head, rows: int, path: Path) -> NDArray[np.integer]:
    shape = (rows, *head.shape[1:])
    size = int(np.prod(shape)) * head.kind.itemsize
    content = file.read(size)
    if len(content) != size:
        raise DataError(f"{path} ends early; copy it again")
    return np.frombuffer(content, head.kind).reshape(shape)
