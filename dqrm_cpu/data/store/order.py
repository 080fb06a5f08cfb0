"""In which order an epoch visits the training rows: as stored, or shuffled anew for each epoch; with rows left out.

An order is a function of the seed, the epoch and the position, so training can be resumed anywhere. Shuffling permutes
groups of rows, then the rows within windows of permuted groups: reads stay close together, and any two rows
can meet in a batch.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.errors import DataError
from dqrm_cpu.kernels.hashing import INCREMENT, mix64
from dqrm_cpu.kernels.jit.compile import thorough_kernel
from dqrm_cpu.kernels.jit.hashing import splitmix64

GROUP_ROWS = 2048
"""Rows that lie together and are moved as one."""

WINDOW_GROUPS = 16
"""32,768 rows from 16 places: of each column no more than a processor's own cache holds, or reading is half as fast."""

_COUNTED_ROWS = 256 * GROUP_ROWS

_GROUPS_STREAM, _ROWS_STREAM, _SAMPLE_STREAM = 1, 2, 3
_WINDOWS_KEPT = 2

Labels: TypeAlias = Callable[[int, int], NDArray[np.uint8]]


class Order:
    """The order in which epochs visit rows; `num_rows` of them, the same number in every epoch."""

    def __init__(
        self, stored_rows: int, seed: int, *, reshuffle: bool, sub_sample_rate: float, labels: Labels | None
    ) -> None:
        self._stored_rows, self._seed, self.reshuffle = stored_rows, seed, reshuffle
        self._rate, self._labels = sub_sample_rate, labels
        self._group_rows, self._window_groups = GROUP_ROWS, WINDOW_GROUPS
        self._kept = self._count_kept()
        self.num_rows = int(self._kept.sum())
        if stored_rows and not self.num_rows:
            raise DataError(
                f"data.sub_sample_rate {sub_sample_rate} leaves no training row, there is no click; use a smaller one"
            )
        self._windows: OrderedDict[int, NDArray[np.int64]] = OrderedDict()
        self._lock = threading.Lock()
        self._turn_to(epoch=0)

    def rows(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        """Returns the numbers of the stored rows at positions start to stop - 1 of an epoch."""
        with self._lock:
            if epoch != self._epoch:
                self._turn_to(epoch)
            pieces = []
            window = int(np.searchsorted(self._window_start, start, "right")) - 1
            while start < stop:
                first, after = int(self._window_start[window]), int(self._window_start[window + 1])
                end = min(stop, after)
                pieces.append(self._window(window)[start - first : end - first])
                start, window = end, window + 1
        return np.concatenate(pieces) if pieces else np.empty(0, np.int64)

    def _turn_to(self, epoch: int) -> None:
        self._groups = np.arange(self._kept.size)
        if self.reshuffle:
            _shuffle(self._groups, _key(self._seed, _GROUPS_STREAM, epoch))
        sizes = np.add.reduceat(self._kept[self._groups], np.arange(0, self._kept.size, self._window_groups))
        self._window_start = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        self._epoch = epoch
        self._windows.clear()

    def _window(self, number: int) -> NDArray[np.int64]:
        rows = self._windows.get(number)
        if rows is None:
            groups = self._groups[number * self._window_groups : (number + 1) * self._window_groups] * self._group_rows
            rows = np.concatenate([self._kept_rows(int(start), int(start) + self._group_rows) for start in groups])
            if self.reshuffle:
                _shuffle(rows, _key(self._seed, _ROWS_STREAM, self._epoch, number))
            self._windows[number] = rows
            if len(self._windows) > _WINDOWS_KEPT:
                self._windows.popitem(last=False)
        return rows

    def _count_kept(self) -> NDArray[np.int64]:
        """Rows of each group that are not left out."""
        starts = np.arange(0, self._stored_rows, self._group_rows)
        if not self._rate:
            return np.minimum(self._group_rows, self._stored_rows - starts)
        kept = np.zeros(starts.size, np.int64)
        for start in range(0, self._stored_rows, _COUNTED_ROWS):
            first = start // self._group_rows
            counts = np.bincount(self._kept_rows(start, start + _COUNTED_ROWS) // self._group_rows - first)
            kept[first : first + counts.size] = counts
        return kept

    def _kept_rows(self, start: int, stop: int) -> NDArray[np.int64]:
        """Returns the rows of a range that are not left out; the range may reach beyond the last row."""
        rows = np.arange(start, min(stop, self._stored_rows))
        if not self._rate:
            return rows
        assert self._labels is not None
        clicked = self._labels(start, start + rows.size)
        return rows[_keep(rows, clicked, _key(self._seed, _SAMPLE_STREAM), self._rate)]


def _key(*numbers: int) -> np.uint64:
    """Hashes a few small numbers to one key."""
    key = 0
    for number in numbers:
        key = mix64((key + number + INCREMENT) % 2**64)
    return np.uint64(key)


@thorough_kernel
def _shuffle(items: Any, key: Any) -> None:
    """Returns a permutation that the key alone decides (Fisher and Yates)."""
    for last in range(items.size - 1, 0, -1):
        drawn = splitmix64(key, last)
        # The high 32 bits, scaled: the bias is below items.size / 2**32.
        other = np.int64(((drawn >> np.uint64(32)) * np.uint64(last + 1)) >> np.uint64(32))
        item = items[last]
        items[last] = items[other]
        items[other] = item


@thorough_kernel
def _keep(rows: Any, clicked: Any, key: Any, rate: float) -> Any:
    """Tells which rows stay: every click, and those whose own draw in [0, 1) is not below the rate."""
    kept = np.empty(rows.size, np.bool_)
    for i in range(rows.size):
        drawn = float(splitmix64(key, rows[i]) >> np.uint64(11)) * 2.0**-53
        kept[i] = clicked[i] != 0 or drawn >= rate
    return kept
