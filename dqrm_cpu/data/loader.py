"""Global batches in a fixed order, of which each rank reads only its share."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray

from dqrm_cpu.data.batch import Batch, RankShares, share_bounds
from dqrm_cpu.data.common_ids import CommonIds
from dqrm_cpu.data.source import Part
from dqrm_cpu.data.store.read_ahead import ReadAhead
from dqrm_cpu.data.store.stored_rows import Stream

_BYTES_OF_A_CELL = 4
_UNWATCHED = nullcontext()


class Loader:
    """Gives batches by number, on from epoch to epoch: `num_batches` is the first batch of the second epoch.

    Prepared rows are read ahead on a thread, into memory that is used again: a batch stays as it is until the next but
    one is asked for. Generated rows are made when they are asked for; a part of them that fits in `cache_bytes` is made
    once and kept for later epochs. `reading` is entered by the thread around whatever it reads; messages call the part
    by its name.
    """

    def __init__(
        self,
        part: Part,
        batch_size: int,
        shares: RankShares,
        device: torch.device,
        cache_bytes: int = 0,
        reading: AbstractContextManager[None] = _UNWATCHED,
        part_name: str = "training",
    ) -> None:
        self._part = part
        self.part_name = part_name
        self.keep_rate = part.keep_rate
        self._batch_size = batch_size
        self._shares = shares
        self._device = device
        self.num_batches = -(-part.num_rows // batch_size)
        self._ahead = _read_ahead(part, batch_size, shares, reading)
        self._keep = self._ahead is None and part.num_rows > 0 and self.cached_bytes(part, shares) <= cache_bytes
        self._kept: dict[int, list[Batch]] = {}

    @property
    def num_rows(self) -> int:
        """The rows of all batches, over all shares."""
        return self._part.num_rows

    @staticmethod
    def cached_bytes(part: Part, shares: RankShares) -> int:
        """Returns what keeping this process' share of the part takes."""
        row = part.rows(0, 1)
        cells = row.dense.shape[1] + row.ids.shape[0] + 1
        return part.num_rows * cells * _BYTES_OF_A_CELL * len(shares.mine) // shares.total

    def global_size(self, number: int) -> int:
        """Returns the number of examples in global batch `number`; the last one of an epoch may be smaller."""
        return min(self._batch_size, self._part.num_rows - number % self.num_batches * self._batch_size)

    @property
    def is_weighted(self) -> bool:
        """Says whether each example of a batch comes with a weight."""
        stored = _stored(self._part)
        return stored is not None and bool(stored.schema.weight)

    @property
    def column_names(self) -> Mapping[str, str]:
        """The data set's own names of columns by the default ones I1, ... and C1, ...; empty of generated rows."""
        stored = _stored(self._part)
        if stored is None:
            return {}
        schema = stored.schema
        dense = {f"I{i}": name for i, name in enumerate(schema.features, 1)}
        dense |= {"weight": schema.weight} if schema.weight else {}
        return dense | {f"C{i}": name for i, name in enumerate(schema.categorical, 1)}

    def row_numbers(self, number: int, share: int) -> NDArray[np.int64]:
        """Returns the numbers of the part's rows that make up one of this process' shares of global batch `number`."""
        epoch, within = divmod(number, self.num_batches)
        low, high = share_bounds(self.global_size(number), self._shares.mine[share], self._shares.total)
        start = within * self._batch_size
        stored = _stored(self._part)
        if stored is not None:
            return stored.row_numbers(epoch, start + low, start + high)
        return np.arange(start + low, start + high)

    def batches(self, number: int) -> list[Batch]:
        """Returns this process' shares of global batch `number`, in the order of their ranks; a share may be empty."""
        epoch, within = divmod(number, self.num_batches)
        if self._ahead is not None:
            return [self._placed(batch) for batch in self._ahead.batches(epoch, within)]
        kept = self._kept.get(within)
        if kept is None:
            kept = [self._made(within, share) for share in self._shares.mine]
            if self._keep:
                self._kept[within] = kept
        return kept

    def copies(self, first: int, count: int) -> list[list[Batch]]:
        """Returns the shares of `count` batches from `first` on, in memory of their own, to be used together."""
        return [[share.copied() for share in self.batches(number)] for number in range(first, first + count)]

    def _made(self, number: int, share: int) -> Batch:
        start = number * self._batch_size
        low, high = share_bounds(self.global_size(number), share, self._shares.total)
        return self._placed(self._part.rows(start + low, start + high))

    def _placed(self, batch: Batch) -> Batch:
        return batch if self._device.type == "cpu" else _to_device(batch, self._device)


def _stored(part: Part) -> Stream | None:
    """Returns the prepared rows that a part shows, whatever became of their ids; None of generated ones."""
    source = part.source.origin if isinstance(part.source, CommonIds) else part.source
    return source if isinstance(source, Stream) else None


def _read_ahead(
    part: Part, batch_size: int, shares: RankShares, reading: AbstractContextManager[None]
) -> ReadAhead | None:
    if not isinstance(part.source, Stream) or not part.num_rows:
        return None
    return ReadAhead(part.source, part.num_rows, batch_size, shares, reading)


def _to_device(batch: Batch, device: torch.device) -> Batch:
    offsets = None if batch.offsets is None else batch.offsets.to(device)
    weight = None if batch.weight is None else batch.weight.to(device)
    return Batch(batch.dense.to(device), batch.ids.to(device), offsets, batch.label.to(device), weight)
