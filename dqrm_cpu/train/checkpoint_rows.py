"""A few rows of a large checkpoint, without reading the rest of it."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from dqrm_cpu.errors import CheckpointError
from dqrm_cpu.train.checkpoint_manifest import Shard, read_manifest
from dqrm_cpu.train.checkpoint_shard import ShardFile


class RowReader:
    """Reads from a checkpoint folder; checksums of whole shards are left to whoever loads it to go on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._manifest = read_manifest(folder)

    def read(self, tensor: str, first_row: int, num_rows: int) -> npt.NDArray[np.float32]:
        """f32[num_rows, ...] of a float32 tensor."""
        dtype, shape = self._manifest.tensors.get(tensor, ("float32", (0,)))
        there = max(min(first_row + num_rows, shape[0] if shape else 1) - max(first_row, 0), 0)
        if there != num_rows:
            raise CheckpointError(
                f"{self._folder} holds {there} of the {num_rows} rows from {first_row} of {tensor}; "
                "use another checkpoint"
            )
        if dtype != "float32":
            raise CheckpointError(f"{tensor} is {dtype} in {self._folder}, not float32; use another checkpoint")
        end, parts = first_row + num_rows, [np.empty((0, *shape[1:]), dtype=np.float32)]
        for shard in self._manifest.shards:
            for piece in shard.pieces:
                low, high = max(first_row, piece.first_row), min(end, piece.first_row + piece.num_rows)
                if piece.tensor == tensor and low < high:
                    parts.append(self._rows(shard, tensor, low - piece.first_row, high - piece.first_row))
        return np.concatenate(parts)

    def _rows(self, shard: Shard, tensor: str, low: int, high: int) -> npt.NDArray[np.float32]:
        with ShardFile(self._folder / shard.file, shard.num_bytes, self._manifest.parts(shard)) as file:
            rows: npt.NDArray[np.float32] = file.rows(tensor, low, high).numpy()
            return rows
