"""Global batches in a fixed order, of which each rank reads only its share."""

import torch

from dqrm_cpu.data.batch import Batch
from dqrm_cpu.data.shards import Shards, shard_bounds
from dqrm_cpu.data.source import Part

_BYTES_OF_A_CELL = 4


class Loader:
    """Batches by number; a part that fits in `cache_bytes` is made once and kept for later epochs."""

    def __init__(self, part: Part, batch_size: int, shards: Shards, device: torch.device, cache_bytes: int = 0) -> None:
        self._part = part
        self._batch_size = batch_size
        self._shards = shards
        self._device = device
        self._keep = part.num_rows > 0 and self.cached_bytes(part, shards) <= cache_bytes
        self._kept: dict[int, list[Batch]] = {}
        self.num_batches = -(-part.num_rows // batch_size)

    @staticmethod
    def cached_bytes(part: Part, shards: Shards) -> int:
        """What keeping this process' share of the part takes."""
        row = part.rows(0, 1)
        cells = row.dense.shape[1] + row.ids.shape[0] + 1
        return part.num_rows * cells * _BYTES_OF_A_CELL * len(shards.mine) // shards.total

    def global_size(self, number: int) -> int:
        """Examples in global batch `number`; the last one of an epoch may be smaller."""
        return min(self._batch_size, self._part.num_rows - number * self._batch_size)

    def batches(self, number: int) -> list[Batch]:
        """This process' shares of global batch `number`, in the order of their ranks; a share may be empty."""
        kept = self._kept.get(number)
        if kept is None:
            kept = [self._read(number, shard) for shard in self._shards.mine]
            if self._keep:
                self._kept[number] = kept
        return kept

    def _read(self, number: int, shard: int) -> Batch:
        start = number * self._batch_size
        low, high = shard_bounds(self.global_size(number), shard, self._shards.total)
        batch = self._part.rows(start + low, start + high)
        return batch if self._device.type == "cpu" else _to_device(batch, self._device)


def _to_device(batch: Batch, device: torch.device) -> Batch:
    offsets = None if batch.offsets is None else batch.offsets.to(device)
    return Batch(batch.dense.to(device), batch.ids.to(device), offsets, batch.label.to(device))
