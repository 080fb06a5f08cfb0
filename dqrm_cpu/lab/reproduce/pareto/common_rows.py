"""A prepared data set without the categories that few training rows hold, as `prepare --min-count` leaves it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.data.batch import Batch
from dqrm_cpu.data.store.manifest import (
    PART_NAMES,
    Manifest,
    ShardFile,
    holds_manifest,
    read_manifest,
    write_manifest,
)
from dqrm_cpu.data.store.stored_rows import StoredRows
from dqrm_cpu.data.store.writer import write_bags, write_shard

Ids = NDArray[np.int32]


def common_rows(folder: Path, manifest: Manifest, num_rows: Mapping[str, int], min_count: int, out: Path) -> Manifest:
    """Writes the first rows of each part into `out`, unless they are there, with the ids of common categories alone.

    An id that fewer than `min_count` of these training rows' cells hold becomes 0, the row of missing and unknown
    categories; the others are numbered anew in their order.
    """
    if holds_manifest(out):
        return read_manifest(out)
    parts = {part: StoredRows(folder, manifest, part).rows(0, num_rows[part]) for part in PART_NAMES}
    renumbered = [
        _new_ids(ids, rows, min_count)
        for ids, rows in zip(_by_table(parts["train"], len(manifest.table_rows)), manifest.table_rows, strict=True)
    ]
    out.mkdir(parents=True, exist_ok=True)
    written = replace(
        manifest,
        table_rows=tuple(int(new.max(initial=0)) + 1 for new in renumbered),
        parts={part: (_written(out, part, manifest, batch, renumbered),) for part, batch in parts.items()},
        settings={"rows_of": manifest.digest(), "min_count": min_count},
        identity=None,  # ids stand for other categories than those of the vocabulary
        parent=None,
    )
    write_manifest(out, written)
    return written


def _new_ids(ids: Ids, rows: int, min_count: int) -> Ids:
    """Returns the new id of each old one, i32[rows]."""
    kept = np.bincount(ids, minlength=rows) >= min_count
    kept[0] = True
    return np.where(kept, np.cumsum(kept) - 1, 0).astype(np.int32)


def _by_table(batch: Batch, num_tables: int) -> list[Ids]:
    ids = batch.ids.numpy()
    if batch.offsets is None:
        return list(ids)
    bounds = batch.offsets.numpy()[:: batch.size] if batch.size else np.zeros(num_tables + 1, np.int64)
    return [ids[low:high] for low, high in pairwise(bounds.tolist())]


def _written(out: Path, part: str, manifest: Manifest, batch: Batch, renumbered: Sequence[Ids]) -> ShardFile:
    ids = [new[old] for new, old in zip(renumbered, _by_table(batch, len(renumbered)), strict=True)]
    dense = batch.dense.numpy()
    stored = dense if batch.weight is None else np.column_stack([dense, batch.weight.numpy()])
    rows = batch.label.numpy().astype(np.uint8), np.ascontiguousarray(stored, np.float32)
    if batch.offsets is None:
        return write_shard(out, f"{part}.shard", manifest.schema, *rows, np.stack(ids))
    return write_bags(out, f"{part}.shard", manifest.schema, *rows, np.concatenate(ids), batch.offsets.numpy())
