"""The MLPerf layout of Criteo Terabyte: terabyte_processed_{train,val,test}.bin, 40 int32 a row.

A row is the label, 13 integers, 26 ids; table sizes lie beside the files in day_fea_count.npz.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dqrm_cpu.data.store.foreign.blocks import (
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

_NUM_DENSE, _NUM_TABLES = 13, 26
_ROW_INTS = 1 + _NUM_DENSE + _NUM_TABLES
_ROW_BYTES = 4 * _ROW_INTS
_PARTS = {"train": "train", "val": "validation", "test": "test"}


class MlperfBin:
    """A folder with one .bin file per part; without one for validation, the test file is halved."""

    num_dense, num_tables = _NUM_DENSE, _NUM_TABLES

    def __init__(self, folder: Path) -> None:
        self.description = "MLPerf's binary files"
        self._files = {part: _only_file(folder, word) for word, part in _PARTS.items()}
        if self._files["train"] is None or self._files["test"] is None:
            raise DataError(f"{folder} lacks a *train*.bin or a *test*.bin; both are needed")
        present = {part: path for part, path in self._files.items() if path is not None}
        rows = {part: _count_rows(path) for part, path in present.items()}
        self.num_rows = sum(rows.values())
        self.sources = tuple(
            SourceFile(path.name, path.stat().st_size, "", rows[part]) for part, path in present.items()
        )
        self.table_rows = _read_counts(folder / "day_fea_count.npz")
        self._rows = rows

    def blocks(self) -> Iterator[ForeignBlock]:
        """Yields rows file by file."""
        for part, path in self._files.items():
            if path is None:
                continue
            values = np.memmap(path, "<i4", "r").reshape(-1, _ROW_INTS)
            halved = part == "test" and self._files["validation"] is None
            ranges = held_out(0, self._rows[part]) if halved else (RowRange(part, 0, self._rows[part]),)
            for piece in split(ranges):
                rows = values[piece.start : piece.stop]
                label = labels_of(rows[:, 0], f"{path} from row {piece.start}")
                logs = log_of_counts(rows[:, 1 : 1 + _NUM_DENSE])
                yield ForeignBlock(piece.part, label, *logs, rows[:, 1 + _NUM_DENSE :].T)


def _only_file(folder: Path, word: str) -> Path | None:
    files = sorted(folder.glob(f"*{word}*.bin"))
    if len(files) > 1:
        raise DataError(f"{folder} has both {files[0].name} and {files[1].name}; leave one file for each part")
    return files[0] if files else None


def _count_rows(path: Path) -> int:
    rows, rest = divmod(path.stat().st_size, _ROW_BYTES)
    if rest or not rows:
        raise DataError(
            f"{path} has {path.stat().st_size:,} bytes, which is no multiple of {_ROW_BYTES} (40 int32 a row); "
            "copy it again"
        )
    return rows


def _read_counts(path: Path) -> tuple[int, ...] | None:
    if not path.is_file():
        return None
    counts = read_counts(path, "counts")
    if len(counts) != _NUM_TABLES:
        raise DataError(f"{path} has {len(counts)} counts, not {_NUM_TABLES}; it belongs to other data")
    return counts
