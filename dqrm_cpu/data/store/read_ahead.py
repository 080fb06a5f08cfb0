"""Reads batches ahead of their use, on one thread, into buffers that are used again and again."""

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.data.batch import Batch, RankShares
from dqrm_cpu.data.store.copying import Target
from dqrm_cpu.data.store.stored_rows import Stream, batch_of

CHUNK_ROWS = 16384
"""Rows of this process that are read at a time: small batches are handed out many per read."""

_BUFFERS = 4
"""For the chunk in use, the one that follows, and after a jump both anew while a batch may still be held."""

Shares = list[Batch]


class _Spans(NamedTuple):
    """The shares of a chunk, batch by batch: where they start, how long they are, where they go."""

    first: NDArray[np.int64]
    num_rows: NDArray[np.int64]
    at: NDArray[np.int64]


class _Key(NamedTuple):
    epoch: int
    chunk: int


class ReadAhead:
    """A reader of shares of global batches in any order; the one that follows is read while the present one is used.

    A batch stays as it is until the next but one is asked for. The thread enters `reading` around each chunk.
    """

    def __init__(
        self,
        stream: Stream,
        num_rows: int,
        batch_size: int,
        shares: RankShares,
        reading: AbstractContextManager[None],
    ) -> None:
        self._stream, self._num_rows, self._batch_size, self._shares = stream, num_rows, batch_size, shares
        self._reading = reading
        share = -(-batch_size * len(shares.mine) // shares.total)
        self._chunk_batches = max(1, CHUNK_ROWS // share)
        self._num_batches = -(-num_rows // batch_size)
        self._num_chunks = -(-self._num_batches // self._chunk_batches)
        self._buffers = [_Buffer(stream) for _ in range(_BUFFERS)]
        self._turn = 0
        self._key: _Key | None = None
        self._current: list[Shares] = []
        self._pending: dict[_Key, Future[list[Shares]]] = {}
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead")

    def batches(self, epoch: int, number: int) -> Shares:
        """Returns this process' shares of batch `number` of an epoch, in the order of their ranks."""
        key = _Key(epoch if self._stream.epochs_differ else 0, number // self._chunk_batches)
        if key != self._key:
            self._turn_to(key)
        return self._current[number % self._chunk_batches]

    def _turn_to(self, key: _Key) -> None:
        self._key = None  # nothing is current should the read fail
        wanted = self._pending.pop(key, None)
        self._forget_pending()
        wanted = wanted or self._submit(key)
        following = self._following(key)
        self._pending[following] = self._submit(following)
        self._current = wanted.result()
        self._key = key

    def _following(self, key: _Key) -> _Key:
        if key.chunk + 1 < self._num_chunks:
            return _Key(key.epoch, key.chunk + 1)
        return _Key(key.epoch + 1 if self._stream.epochs_differ else 0, 0)

    def _forget_pending(self) -> None:
        """Forgets reads after a jump. One thread reads in the order of submission, each to its end before the next."""
        for future in self._pending.values():
            future.cancel()
        self._pending.clear()

    def _submit(self, key: _Key) -> "Future[list[Shares]]":
        self._turn = (self._turn + 1) % _BUFFERS
        return self._executor.submit(self._read_chunk, key, self._buffers[self._turn])

    def _read_chunk(self, key: _Key, buffer: "_Buffer") -> list[Shares]:
        with self._reading:
            return self._read(key, buffer)

    def _read(self, key: _Key, buffer: "_Buffer") -> list[Shares]:
        spans = self._spans(key.chunk)
        if self._stream.bags:
            shares = [self._stream.batch(key.epoch, int(a), int(a + n)) for a, n in zip(*spans[:2], strict=True)]
        else:
            shares = buffer.fill(key.epoch, spans)
        count = len(self._shares.mine)
        return [shares[k : k + count] for k in range(0, len(shares), count)]

    def _spans(self, chunk: int) -> _Spans:
        numbers = np.arange(chunk * self._chunk_batches, min((chunk + 1) * self._chunk_batches, self._num_batches))
        starts = (numbers * self._batch_size)[:, None]
        sizes = np.minimum(self._batch_size, self._num_rows - starts)
        mine = np.asarray(self._shares.mine)[None, :]
        low = sizes * mine // self._shares.total
        count = (sizes * (mine + 1) // self._shares.total - low).ravel()
        return _Spans((starts + low).ravel(), count, np.cumsum(count) - count)


class _Buffer:
    """Memory of one chunk. The views that are handed out are made once for each shape of a chunk."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._target: Target | None = None
        self._views: dict[bytes, Shares] = {}

    def fill(self, epoch: int, spans: _Spans) -> Shares:
        """Reads a chunk and returns all its shares."""
        target = self._reserve(int(spans.num_rows.sum()))
        self._stream.read(epoch, *spans, target)
        shape = spans.num_rows.tobytes()
        if shape not in self._views:
            pairs = zip(spans.at.tolist(), spans.num_rows.tolist(), strict=True)
            self._views[shape] = [batch_of(target, self._stream.num_tables, first, rows) for first, rows in pairs]
        return self._views[shape]

    def _reserve(self, rows: int) -> Target:
        """Makes the memory anew if it is too small; only the first chunk is ever smaller than a later one."""
        if self._target is None or self._target.label.size < rows:
            self._target = self._stream.new_target(rows)
            self._views.clear()
        return self._target
