"""Reads every byte of a prepared data set and compares it with its checksums."""

from collections.abc import Callable
from pathlib import Path

from dqrm_cpu.data.store.manifest import PART_NAMES, Manifest, ShardFile
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
    found, read = [], 0
    for block in range(shard.header.num_blocks):
        found += shard.damages(block)
        read += shard.block_bytes(block)
        progress(shard.block_bytes(block))
    progress(file.bytes - read)
    return found
