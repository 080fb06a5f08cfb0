"""Writes shards of what another program prepared."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu import __version__
from dqrm_cpu.base.memory import format_size
from dqrm_cpu.data.store.foreign.blocks import Foreign, ForeignBlock
from dqrm_cpu.data.store.foreign.kaggle_npz import KaggleNpz
from dqrm_cpu.data.store.foreign.mlperf_bin import MlperfBin
from dqrm_cpu.data.store.foreign.torchrec_npy import TorchrecNpy
from dqrm_cpu.data.store.manifest import (
    FORMAT,
    PART_NAMES,
    ColumnStatistics,
    Manifest,
    ShardFile,
    holds_manifest,
    write_manifest,
)
from dqrm_cpu.data.store.mapping_faults import name_unreadable_files
from dqrm_cpu.data.store.schema import CRITEO, Schema
from dqrm_cpu.data.store.writer import write_shard
from dqrm_cpu.errors import DataError

_LARGEST_TABLE = 1 << 31


def open_foreign(source: Path) -> Foreign:
    """Recognizes the format by the names of the files."""
    if source.is_file() and source.suffix == ".npz":
        return KaggleNpz(source)
    if source.is_dir() and any(source.glob("*.bin")):
        return MlperfBin(source)
    if source.is_dir() and any(source.glob("day_*_dense.npy")):
        return TorchrecNpy(source)
    raise DataError(
        f"{source} is nothing that can be converted; give DLRM's processed .npz, a folder of MLPerf's *train*.bin, "
        "*val*.bin and *test*.bin, or a folder of torchrec's day_N_dense.npy, day_N_sparse.npy and day_N_labels.npy"
    )


def convert(foreign: Foreign, out: Path, max_ind_range: int, progress: Callable[[int], None]) -> Manifest:
    """Writes a data set into `out`; ids are taken modulo max_ind_range where that is above 0.

    `progress` takes how many rows were written since the last time.
    """
    if holds_manifest(out):
        raise DataError(f"{out} holds a data set already; give another folder, or remove it first")
    _require_space(foreign, out)
    name_unreadable_files()
    out.mkdir(parents=True, exist_ok=True)
    conversion = _Conversion(out, foreign, max_ind_range)
    for block in foreign.blocks():
        conversion.add(block)
        progress(block.label.size)
    manifest = conversion.manifest()
    write_manifest(out, manifest)
    return manifest


class _Conversion:
    """Shards written so far, and what was counted on the way."""

    def __init__(self, out: Path, foreign: Foreign, max_ind_range: int) -> None:
        self._out, self._foreign, self._range = out, foreign, max_ind_range
        self._schema = _schema_of(foreign)
        self._shards: dict[str, list[ShardFile]] = {part: [] for part in PART_NAMES}
        self._largest_id = np.zeros(foreign.num_tables, np.int64)
        self._clamped = np.zeros(foreign.num_dense, np.int64)
        self._minimum = np.full(foreign.num_dense, np.inf)
        self._maximum = np.full(foreign.num_dense, -np.inf)
        self._total = np.zeros(foreign.num_dense)

    def add(self, block: ForeignBlock) -> None:
        """Writes one shard."""
        shards = self._shards[block.part]
        name = f"{block.part}-{len(shards):05d}.shard"
        ids = self._folded(block.ids, name)
        shards.append(write_shard(self._out, name, self._schema, block.label, block.dense, ids))
        self._largest_id = np.maximum(self._largest_id, ids.max(axis=1, initial=0))
        self._clamped += block.clamped
        self._minimum = np.minimum(self._minimum, block.dense.min(axis=0, initial=np.inf))
        self._maximum = np.maximum(self._maximum, block.dense.max(axis=0, initial=-np.inf))
        self._total += block.dense.sum(axis=0, dtype=np.float64)

    def manifest(self) -> Manifest:
        """Returns the manifest of all that was added."""
        foreign = self._foreign
        return Manifest(
            format=FORMAT,
            schema=self._schema,
            table_rows=self._table_rows(),
            parts={part: tuple(shards) for part, shards in self._shards.items()},
            columns=(*self._dense_statistics(), *map(ColumnStatistics, self._schema.categorical)),
            sources=foreign.sources,
            settings={"converted_from": foreign.description, "max_ind_range": self._range},
            version=__version__,
        )

    def _folded(self, ids: NDArray[np.integer], name: str) -> NDArray[np.int32]:
        if self._range > 0:
            return np.ascontiguousarray(ids % self._range).astype(np.int32)
        if ids.size and (ids.min() < 0 or ids.max() >= _LARGEST_TABLE - 1):
            wrong = ids.min() if ids.min() < 0 else ids.max()
            raise DataError(
                f"{name} would hold id {wrong}: these are hashes, not rows of a table; "
                "fold them with --max-ind-range N, such as 10000000"
            )
        return np.ascontiguousarray(ids).astype(np.int32)

    def _table_rows(self) -> tuple[int, ...]:
        """Returns the table sizes that the files name, or those that the ids need."""
        needed = tuple(int(largest) + 1 for largest in self._largest_id)
        known = self._foreign.table_rows
        if known is None:
            return needed
        sizes = tuple(min(rows, self._range) if self._range > 0 else rows for rows in known)
        for name, rows, need in zip(self._schema.categorical, sizes, needed, strict=True):
            if need > rows:
                raise DataError(f"column {name} has id {need - 1}, and its counts say {rows}; they are of other data")
        return sizes

    def _dense_statistics(self) -> list[ColumnStatistics]:
        rows = max(sum(shard.rows for shards in self._shards.values() for shard in shards), 1)
        return [
            ColumnStatistics(
                name,
                clamped=int(self._clamped[k]),
                minimum=float(self._minimum[k]),
                mean=float(self._total[k] / rows),
                maximum=float(self._maximum[k]),
            )
            for k, name in enumerate(self._schema.dense)
        ]


def _schema_of(foreign: Foreign) -> Schema:
    if (foreign.num_dense, foreign.num_tables) == (CRITEO.num_dense, CRITEO.num_tables):
        return CRITEO
    dense = (f"I{k + 1}" for k in range(foreign.num_dense))
    return Schema(tuple(dense), tuple(f"C{k + 1}" for k in range(foreign.num_tables)))


def _require_space(foreign: Foreign, out: Path) -> None:
    row_bytes = 1 + 4 * (foreign.num_dense + foreign.num_tables)
    existing = next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())
    need, free = foreign.num_rows * row_bytes, shutil.disk_usage(existing).free
    if need > free:
        raise DataError(
            f"{out} needs up to {format_size(need)} and {format_size(free)} are free there; make room first"
        )
