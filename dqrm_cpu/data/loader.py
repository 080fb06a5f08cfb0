"""Global batches in a fixed order, of which each rank reads only its share."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray

from dqrm_cpu.data.batch import Batch
from dqrm_cpu.data.shards import Shards, shard_bounds
from dqrm_cpu.data.source import Part
from dqrm_cpu.data.store.ahead import ReadAhead
from dqrm_cpu.data.store.stream import Stream

_BYTES_OF_A_CELL = 4
_UNWATCHED = nullcontext()


class Loader:
    """Batches by number, which runs on from epoch to epoch: `num_batches` is the first batch of the second epoch.

    Prepared rows are read ahead on a thread, into memory that is used again: a batch stays as it is until the next but
    one is asked for. Generated rows are made when they are asked for; a part of them that fits in `cache_bytes` is made
    once and kept for later epochs. `reading` is entered by the thread around whatever it reads; messages call the part
    by its name.
    """

    def __init__(
        self,
        part: Part,
        batch_size: int,
        shards: Shards,
        device: torch.device,
        cache_bytes: int = 0,
        reading: AbstractContextManager[None] = _UNWATCHED,
        part_name: str = "training",
    ) -> None:
        self._part = part
        self.part_name = part_name
        self._batch_size = batch_size
        self._shards = shards
        self._device = device
        self.num_batches = -(-part.num_rows // batch_size)
        self._ahead = _read_ahead(part, batch_size, shards, reading)
        self._keep = self._ahead is None and part.num_rows > 0 and self.cached_bytes(part, shards) <= cache_bytes
        self._kept: dict[int, list[Batch]] = {}

    @staticmethod
    def cached_bytes(part: Part, shards: Shards) -> int:
        """What keeping this process' share of the part takes."""
        row = part.rows(0, 1)
        cells = row.dense.shape[1] + row.ids.shape[0] + 1
        return part.num_rows * cells * _BYTES_OF_A_CELL * len(shards.mine) // shards.total

    def global_size(self, number: int) -> int:
        """Examples in global batch `number`; the last one of an epoch may be smaller."""
        return min(self._batch_size, self._part.num_rows - number % self.num_batches * self._batch_size)

    @property
    def column_names(self) -> Mapping[str, str]:
        """The data set's own names of columns by the default ones I1, ... and C1, ...; empty of generated rows."""
        if not isinstance(self._part.source, Stream):
            return {}
        schema = self._part.source.schema
        dense = {f"I{i}": name for i, name in enumerate(schema.dense, 1)}
        return dense | {f"C{i}": name for i, name in enumerate(schema.categorical, 1)}

    def row_numbers(self, number: int, share: int) -> NDArray[np.int64]:
        """Which rows of the part make up one of this process' shares of global batch `number`."""
        epoch, within = divmod(number, self.num_batches)
        low, high = shard_bounds(self.global_size(number), self._shards.mine[share], self._shards.total)
        start = within * self._batch_size
        source = self._part.source
        if isinstance(source, Stream):
            return source.row_numbers(epoch, start + low, start + high)
        return np.arange(start + low, start + high)

    def batches(self, number: int) -> list[Batch]:
        """This process' shares of global batch `number`, in the order of their ranks; a share may be empty."""
        epoch, within = divmod(number, self.num_batches)
        if self._ahead is not None:
            return [self._placed(batch) for batch in self._ahead.batches(epoch, within)]
        kept = self._kept.get(within)
        if kept is None:
            kept = [self._made(within, shard) for shard in self._shards.mine]
            if self._keep:
                self._kept[within] = kept
        return kept

    def copies(self, first: int, count: int) -> list[list[Batch]]:
        """The shares of `count` batches from `first` on, in memory of their own, to be used together."""
        return [[share.copied() for share in self.batches(number)] for number in range(first, first + count)]

    def _made(self, number: int, shard: int) -> Batch:
        start = number * self._batch_size
        low, high = shard_bounds(self.global_size(number), shard, self._shards.total)
        return self._placed(self._part.rows(start + low, start + high))

    def _placed(self, batch: Batch) -> Batch:
        return batch if self._device.type == "cpu" else _to_device(batch, self._device)


def _read_ahead(part: Part, batch_size: int, shards: Shards, reading: AbstractContextManager[None]) -> ReadAhead | None:
    if not isinstance(part.source, Stream) or not part.num_rows:
        return None
    return ReadAhead(part.source, part.num_rows, batch_size, shards, reading)


def _to_device(batch: Batch, device: torch.device) -> Batch:
    offsets = None if batch.offsets is None else batch.offsets.to(device)
    return Batch(batch.dense.to(device), batch.ids.to(device), offsets, batch.label.to(device))
