"""A prepared data set without the categories that few training rows hold, as `prepare --min-count` leaves it."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from dqrm_cpu.data.batch import Batch
from dqrm_cpu.data.common_ids import CommonIds, common, id_counts, places, rows_of
from dqrm_cpu.data.source import Part
from dqrm_cpu.data.store.manifest import (
    PART_NAMES,
    Manifest,
    ShardFile,
    holds_manifest,
    read_manifest,
    write_manifest,
)
from dqrm_cpu.data.store.stored_rows import StoredRows
from dqrm_cpu.data.store.writer import RowBlock, block_of, write_bags, write_shard


def common_rows(folder: Path, manifest: Manifest, num_rows: Mapping[str, int], min_count: int, out: Path) -> Manifest:
    """Writes the first rows of each part into `out`, unless they are there, with the ids of common categories alone.

    An id that fewer than `min_count` of these training rows' cells hold becomes 0, the row of missing and unknown
    categories; the others are numbered anew in their order.
    """
    if holds_manifest(out):
        return read_manifest(out)
    parts = {part: StoredRows(folder, manifest, part) for part in PART_NAMES}
    training = num_rows["train"]
    kept = common(id_counts(Part(parts["train"], 0, training), manifest.table_rows, training), min_count)
    new_ids = places(kept)
    out.mkdir(parents=True, exist_ok=True)
    written = replace(
        manifest,
        table_rows=rows_of(kept),
        parts={
            part: (_written(out, part, manifest, CommonIds(rows, new_ids).rows(0, num_rows[part])),)
            for part, rows in parts.items()
        },
        settings={"rows_of": manifest.digest(), "min_count": min_count},
        identity=None,  # ids stand for other categories than those of the vocabulary
        parent=None,
    )
    write_manifest(out, written)
    return written


def _written(out: Path, part: str, manifest: Manifest, rows: Batch) -> ShardFile:
    block = block_of(rows)
    if isinstance(block, RowBlock):
        return write_shard(out, f"{part}.shard", manifest.schema, *block)
    return write_bags(out, f"{part}.shard", manifest.schema, *block)
