"""Reads every byte of a prepared data set and compares it with its checksums."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from dqrm_cpu.data.store.layout import BLOCK_ROWS
from dqrm_cpu.data.store.manifest import PART_NAMES, Manifest, ShardFile
from dqrm_cpu.data.store.schema import Schema
from dqrm_cpu.data.store.shard import Shard
from dqrm_cpu.errors import DataError

Progress = Callable[[int], None]
"""Told how many bytes were read since the last time."""


def verify(directory: Path, manifest: Manifest, progress: Progress) -> list[str]:
    """What is damaged, a line for each header or section; empty when all is whole."""
    found = []
    for part in PART_NAMES:
        for file in manifest.parts[part]:
            found += _verify_shard(directory, manifest, file, progress)
    return found


def _verify_shard(directory: Path, manifest: Manifest, file: ShardFile, progress: Progress) -> list[str]:
    try:
        shard = Shard(directory / file.name, file)
        shard.require_schema(manifest.schema, manifest.table_rows, shard.header.bags)
    except DataError as error:
        progress(file.bytes)
        return [str(error)]
    found, read, clicks = [], 0, 0
    for block in range(shard.header.num_blocks):
        damages = shard.damages(block)
        found += damages
        if not damages:
            found += _infinite_values(shard, block, manifest.schema)
            clicks += int(shard.labels(block).sum())
        read += shard.block_bytes(block)
        progress(shard.block_bytes(block))
    progress(file.bytes - read)
    if not found and clicks != file.clicks:
        found.append(f"{shard.path} has {clicks:,} clicks, its manifest says {file.clicks:,}")
    return found


def _infinite_values(shard: Shard, block: int, schema: Schema) -> list[str]:
    """The first dense value of a block that is no finite number."""
    dense = shard.dense(block).reshape(-1, schema.num_dense)
    for row, column in np.argwhere(~np.isfinite(dense))[:1].tolist():
        what = f"{dense[row, column]} in {schema.dense[column]} of row {block * BLOCK_ROWS + row:,}"
        return [f"{shard.path}: the dense section of block {block} has {what}"]
    return []
