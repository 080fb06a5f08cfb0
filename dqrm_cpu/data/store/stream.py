"""A part of a prepared data set in the order in which an epoch visits it."""

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.data.batch import Batch
from dqrm_cpu.data.store.copying import Target
from dqrm_cpu.data.store.order import Order
from dqrm_cpu.data.store.part import StoredRows


class Stream:
    """Rows by position; without an order, positions are row numbers. As a `RowSource` it shows the first epoch."""

    def __init__(self, stored: StoredRows, num_rows: int, order: Order | None = None) -> None:
        self._stored = stored
        self._order = order
        self.num_rows = num_rows if order is None else order.num_rows
        self.epochs_differ = order is not None and order.reshuffle
        self.bags, self.num_tables = stored.bags, stored.num_tables
        self.schema = stored.schema

    def rows(self, start: int, stop: int) -> Batch:
        """Positions start to stop - 1 of the first epoch."""
        return self.batch(0, start, stop)

    def batch(self, epoch: int, start: int, stop: int) -> Batch:
        """Positions start to stop - 1 of an epoch, in new tensors."""
        if self._order is None:
            return self._stored.rows(start, stop)
        return self._stored.take(self._order.rows(epoch, start, stop))

    def row_numbers(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        """Which stored rows are at positions start to stop - 1 of an epoch."""
        return np.arange(start, stop) if self._order is None else self._order.rows(epoch, start, stop)

    def new_target(self, rows: int) -> Target:
        """Arrays that `read` can fill."""
        return self._stored.new_target(rows)

    def read(
        self, epoch: int, first: NDArray[np.int64], num_rows: NDArray[np.int64], at: NDArray[np.int64], target: Target
    ) -> None:
        """Share s becomes the num_rows[s] positions from first[s] on, from row at[s] of the target on.

        Shares lie one after another in the target. One id per column only.
        """
        if self._order is None:
            self._stored.copy(first, num_rows, at, target)
            return
        spans = zip(first.tolist(), num_rows.tolist(), strict=True)
        rows = [self._order.rows(epoch, start, start + count) for start, count in spans]
        self._stored.gather(np.concatenate(rows), num_rows, at, target)
