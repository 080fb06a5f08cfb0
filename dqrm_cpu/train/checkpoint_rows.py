"""A few rows of a large checkpoint, without reading the rest of it."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from dqrm_cpu.train.checkpoint_files import DamagedCheckpointError, read_manifest


class RowReader:
    """Reads from a checkpoint folder; checksums of whole shards are left to whoever loads it to go on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shards = read_manifest(folder).shards

    def read(self, tensor: str, first_row: int, num_rows: int) -> npt.NDArray[np.float32]:
        """f32[num_rows, ...] of a float tensor."""
        end, parts = first_row + num_rows, []
        for shard in self._shards:
            for piece in shard.pieces:
                low, high = max(first_row, piece.first_row), min(end, piece.first_row + piece.num_rows)
                if piece.tensor == tensor and low < high:
                    parts.append(self._slice(shard.file, tensor, low - piece.first_row, high - piece.first_row))
        found = np.concatenate(parts) if parts else np.empty(0, dtype=np.float32)
        if found.shape[0] != num_rows:
            raise DamagedCheckpointError(
                f"{self._folder} holds {found.shape[0]} of the {num_rows} rows from {first_row} of {tensor}; "
                "use another checkpoint"
            )
        return found

    def _slice(self, file_name: str, tensor: str, low: int, high: int) -> npt.NDArray[np.float32]:
        path = self._folder / file_name
        try:
            with safe_open(path, framework="numpy") as file:
                part: npt.NDArray[np.float32] = file.get_slice(tensor)[low:high]
                return part
        except (OSError, SafetensorError) as error:
            raise DamagedCheckpointError(f"{path} cannot be read ({error}); use another checkpoint") from error
