"""torchrec's day_N_dense.npy, day_N_sparse.npy and day_N_labels.npy: float32 log(x + 3), int32 ids, int32 labels.

Of several sparse files of a day, the one with contiguous ids is read.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.base.decode import UnreadableError
from dqrm_cpu.base.npy import map_npy
from dqrm_cpu.data.store.foreign.blocks import ForeignBlock, RowRange, held_out, labels_of, split
from dqrm_cpu.data.store.manifest import SourceFile
from dqrm_cpu.errors import DataError

_ADDED = 3
_SPARSE = ("sparse_contig_freq", "sparse")


class _Day(NamedTuple):
    dense: NDArray[np.float32]  # [n, 13]
    sparse: NDArray[np.integer[Any]]  # [n, 26]
    labels: NDArray[np.integer[Any]]  # [n, 1]
    files: tuple[SourceFile, ...]


class TorchrecNpy:
    """A folder of days in the order of their numbers; the last is halved into test and validation."""

    def __init__(self, folder: Path) -> None:
        self.description = "torchrec's .npy files"
        self.table_rows: tuple[int, ...] | None = None
        matches = (re.fullmatch(r"day_(\d+)_dense\.npy", path.name) for path in folder.iterdir())
        numbers = sorted(int(match[1]) for match in matches if match)
        if len(numbers) < 2:
            raise DataError(
                f"{folder} has {len(numbers)} day_N_dense.npy; two days or more are needed, to hold one out"
            )
        self._days = [_open_day(folder, number) for number in numbers]
        self.num_dense, self.num_tables = self._days[0].dense.shape[1], self._days[0].sparse.shape[1]
        for number, day in zip(numbers, self._days, strict=True):
            if (day.dense.shape[1], day.sparse.shape[1]) != (self.num_dense, self.num_tables):
                raise DataError(
                    f"{folder}: day {number} has other columns than day {numbers[0]}; take one of them away"
                )
        self.num_rows = sum(day.dense.shape[0] for day in self._days)
        self.sources = tuple(file for day in self._days for file in day.files)

    def blocks(self) -> Iterator[ForeignBlock]:
        """Yields rows day by day."""
        for place, day in enumerate(self._days):
            rows = day.dense.shape[0]
            last = place == len(self._days) - 1
            ranges = held_out(0, rows) if last else (RowRange("train", 0, rows),)
            for piece in split(ranges):
                part = slice(piece.start, piece.stop)
                label = labels_of(day.labels[part].ravel(), f"{day.files[2].path} from row {piece.start}")
                yield ForeignBlock(piece.part, label, *_converted(day.dense[part]), day.sparse[part].T)


def _converted(stored: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Turns log(x + 3) into log(x + 1). Numbers below -3 have no logarithm and were written as nan or -inf."""
    with np.errstate(invalid="ignore"):
        values = np.rint(np.exp(stored.astype(np.float64)) - _ADDED)
    negative = ~(values >= 0)
    logs = np.log(np.where(negative, 0, values) + 1).astype(np.float32)
    return logs, negative.sum(axis=0, dtype=np.int64)


def _open_day(folder: Path, number: int) -> _Day:
    sparse = next((name for name in _SPARSE if (folder / f"day_{number}_{name}.npy").is_file()), _SPARSE[-1])
    paths = [folder / f"day_{number}_{name}.npy" for name in ("dense", sparse, "labels")]
    try:
        arrays = [map_npy(path) for path in paths]
    except (OSError, UnreadableError) as error:
        raise DataError(
            f"{folder}: day {number} cannot be read ({error}); it needs dense, sparse and labels"
        ) from error
    if not all(array.ndim for array in arrays):
        raise DataError(f"{folder}: day {number} holds single numbers; it needs dense, sparse and labels")
    rows = arrays[0].shape[0]
    kinds = ("f", "iu", "iu")
    for path, array, kind in zip(paths, arrays, kinds, strict=True):
        if array.shape[0] != rows or array.dtype.kind not in kind or (array.ndim != 2 and path is not paths[2]):
            raise DataError(f"{path} is {array.dtype} {array.shape}, and {paths[0].name} has {rows} rows")
    files = tuple(SourceFile(path.name, path.stat().st_size, "", rows) for path in paths)
    return _Day(arrays[0], arrays[1], arrays[2], files)
