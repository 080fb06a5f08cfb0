"""The first rows of a part of a prepared data set, in NumPy: whoever reads a few does without what is compiled."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.data.store.layout import Section, column_offsets
from dqrm_cpu.data.store.manifest import Manifest
from dqrm_cpu.data.store.shard import MappedShard, require_size


class FewRows(NamedTuple):
    """Numbers and ids of some rows."""

    dense: NDArray[np.float32]  # [n, D], without the weight of a row
    bags: tuple[tuple[NDArray[np.int64], NDArray[np.int64]], ...]
    """Of each table how many ids each row has, int64[n], and all of them, row by row."""


def first_rows(directory: Path, manifest: Manifest, part: str, most: int) -> FewRows:
    """Reads up to so many rows from the first on; blocks are compared with their checksums."""
    blocks, wanted = [], min(most, manifest.num_rows(part))
    for block in _blocks(directory, manifest, part):
        blocks.append(block)
        if sum(len(dense) for dense, _ in blocks) >= wanted:
            break
    num_tables, num_dense = manifest.schema.num_tables, len(manifest.schema.features)
    dense = np.concatenate([np.empty((0, num_dense), np.float32), *(numbers for numbers, _ in blocks)])[:wanted]
    bags = []
    for t in range(num_tables):
        sizes = np.concatenate([np.empty(0, np.int64), *(of_tables[t][0] for _, of_tables in blocks)])[:wanted]
        ids = np.concatenate([np.empty(0, np.int64), *(of_tables[t][1] for _, of_tables in blocks)])
        bags.append((sizes, ids[: sizes.sum()]))
    return FewRows(dense, tuple(bags))


_Bags = list[tuple[NDArray[np.int64], NDArray[np.int64]]]


def _blocks(directory: Path, manifest: Manifest, part: str) -> Iterator[tuple[NDArray[np.float32], _Bags]]:
    """Yields blocks in their order: dense values [n, D], and sizes and ids of the bags of each table."""
    for file in manifest.parts[part]:
        require_size(directory / file.name, file)
        shard = MappedShard(directory / file.name, file)
        shard.require_schema(manifest.schema, manifest.table_rows, shard.header.bags)
        for block in range(shard.header.num_blocks):
            shard.check_block(block)
            dense = shard.dense(block).reshape(-1, manifest.schema.num_dense)
            yield dense[:, : len(manifest.schema.features)], list(_bags(shard, block))


def _bags(shard: MappedShard, block: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    rows, content = shard.header.rows_of(block), shard.content(block, Section.IDS)
    if not shard.header.bags:
        widths = shard.id_bytes
        for start, width in zip(column_offsets(widths, rows).tolist(), widths.tolist(), strict=False):
            ids = content[start : start + width * rows].view(f"<u{width}").astype(np.int64)
            yield np.ones(rows, np.int64), ids
        return
    ids, offsets = content.view("<u4").astype(np.int64), shard.content(block, Section.OFFSETS).view("<i4")
    for t in range(len(shard.id_bytes)):
        bounds = offsets[t * rows : (t + 1) * rows + 1].astype(np.int64)
        yield np.diff(bounds), ids[bounds[0] : bounds[-1]]
