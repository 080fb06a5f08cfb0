"""Rows of a checkpoint's tensors, as arrays of NumPy: all of some tensors, those of one block by block, or a few."""

from collections.abc import Callable, Iterator, Set
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.errors import CheckpointError
from dqrm_cpu.kernels.row_forms import stored_values
from dqrm_cpu.train.checkpoint_manifest import CheckpointManifest, CheckpointShard, Piece, is_table, read_manifest
from dqrm_cpu.train.checkpoint_shard import ShardReader, damaged
from dqrm_cpu.train.working import Advance, untold


def read_pieces(folder: Path, manifest: CheckpointManifest, names: Set[str]) -> Iterator[tuple[Piece, NDArray[Any]]]:
    """Yields the rows of the named tensors, shard after shard; a shard is checked before any of its rows come."""
    yield from read_wanted(folder, manifest, lambda piece: piece.tensor in names)


def read_wanted(
    folder: Path, manifest: CheckpointManifest, is_wanted: Callable[[Piece], bool], advance: Advance = untold
) -> Iterator[tuple[Piece, NDArray[Any]]]:
    """Does so with the pieces that are wanted; `advance` hears of the bytes of every shard."""
    for shard in manifest.shards:
        wanted = [piece for piece in shard.pieces if is_wanted(piece)]
        if wanted:
            with ShardReader(folder / shard.file, shard.num_bytes, manifest.parts(shard)) as file:
                _require_checksum(file, folder, shard)
                for piece in wanted:
                    yield piece, file.tensor(piece.tensor)
        advance(shard.num_bytes)


def require_intact(folder: Path, manifest: CheckpointManifest, advance: Advance = untold) -> None:
    """Reads every shard to its end and compares its checksum; DamagedCheckpointError where it is another one.

    `advance` hears of the bytes that were read.
    """
    for shard in manifest.shards:
        with ShardReader(folder / shard.file, shard.num_bytes, manifest.parts(shard)) as file:
            _require_checksum(file, folder, shard)
        advance(shard.num_bytes)


def _require_checksum(file: ShardReader, folder: Path, shard: CheckpointShard) -> None:
    if file.crc32() != shard.crc32:
        raise damaged(folder / shard.file, "its checksum changed")


def read_blocks(
    folder: Path, manifest: CheckpointManifest, tensor: str, first_row: int, num_rows: int, rows_at_once: int
) -> Iterator[NDArray[np.float32]]:
    """Yields rows of a float32 tensor, or values of rows of tables in fewer bits, in their order, few at a time.

    Checksums of shards are left to `require_intact`.
    """
    end = first_row + num_rows
    pieces = [(piece, shard) for shard in manifest.shards for piece in shard.pieces if piece.tensor == tensor]
    for piece, shard in sorted(pieces, key=lambda one: one[0].first_row):
        low, high = max(first_row, piece.first_row), min(end, piece.first_row + piece.num_rows)
        if low >= high:
            continue
        with ShardReader(folder / shard.file, shard.num_bytes, manifest.parts(shard)) as file:
            for begin in range(low, high, rows_at_once):
                last = min(begin + rows_at_once, high)
                rows = file.rows(tensor, begin - piece.first_row, last - piece.first_row)
                yield stored_values(rows) if is_table(tensor) else rows


def read_tensor(folder: Path, manifest: CheckpointManifest, tensor: str) -> NDArray[np.float32]:
    """Reads a whole tensor, a vector f32[N], whose checksums are left to `require_intact`."""
    (num_values,) = manifest.tensors[tensor].shape
    blocks = read_blocks(folder, manifest, tensor, 0, num_values, max(num_values, 1))
    return np.concatenate([np.empty(0, np.float32), *blocks])


class RowReader:
    """Reads a few rows of a large checkpoint without the rest of it.

    Checksums of whole shards are left to whoever loads it to go on.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._manifest = read_manifest(folder)

    def read(self, tensor: str, first_row: int, num_rows: int) -> NDArray[np.float32]:
        """Reads rows of a float32 tensor, or values of rows of tables in fewer bits, f32[num_rows, ...]."""
        dtype, shape = self._manifest.tensors.get(tensor, ("float32", (0,)))
        is_stored = is_table(tensor) and dtype in ("bfloat16", "uint8")
        there = max(min(first_row + num_rows, shape[0] if shape else 1) - max(first_row, 0), 0)
        if there != num_rows:
            raise CheckpointError(
                f"{self._folder} holds {there} of the {num_rows} rows from {first_row} of {tensor}; "
                "use another checkpoint"
            )
        if dtype != "float32" and not is_stored:
            raise CheckpointError(f"{tensor} is {dtype} in {self._folder}, not float32; use another checkpoint")
        end, parts = first_row + num_rows, [np.empty((0, *shape[1:]), dtype=np.float32)] if not num_rows else []
        for shard in self._manifest.shards:
            for piece in shard.pieces:
                low, high = max(first_row, piece.first_row), min(end, piece.first_row + piece.num_rows)
                if piece.tensor == tensor and low < high:
                    parts.append(self._rows(shard, tensor, low - piece.first_row, high - piece.first_row))
        return np.concatenate(parts)

    def _rows(self, shard: CheckpointShard, tensor: str, low: int, high: int) -> NDArray[np.float32]:
        with ShardReader(self._folder / shard.file, shard.num_bytes, self._manifest.parts(shard)) as file:
            rows = file.rows(tensor, low, high)
            return stored_values(rows) if is_table(tensor) else rows
