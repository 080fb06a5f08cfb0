"""The rows of a step's batch, where tables lie on several ranks: fetched, and asked for a step ahead."""

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from dqrm_cpu.comm.sharding.row_exchange import Ask, FetchedRows, RowExchange
from dqrm_cpu.data.batch import BadBatchError, Batch
from dqrm_cpu.kernels.types import Bags, Tables
from dqrm_cpu.model.dlrm import Dlrm

Upcoming = Callable[[], Sequence[Batch]]
"""Returns this process' shares of the batch of the next iteration."""


class StepRows:
    """Fetches the rows of each batch while the bottom MLP computes, and asks for those of the next one beside the rest.

    Every rank asks for the same iteration ahead, or none does; and what was asked for is used by all, or by none.
    """

    def __init__(self, exchange: RowExchange, model: Dlrm) -> None:
        self.exchange = exchange
        self._model = model
        self._ahead: tuple[int, Batch, Ask] | None = None  # for which iteration and batch it has asked

    def begin(self, iteration: int, batch: Batch, bags: Bags, scale: Tensor) -> Callable[[], FetchedRows]:
        """Begins to fetch the rows of a share, as they are now; the function that it returns waits for them.

        It may be called again.
        """
        ahead, self._ahead = self._ahead, None
        is_asked = ahead is not None and ahead[0] == iteration and ahead[1] is batch
        ask = ahead[2] if ahead is not None and is_asked else self.exchange.ask(bags)
        return cache(self.exchange.begin(ask, scale, self._model.lookup_bits))

    def prepare_ahead(self, iteration: int, upcoming: Upcoming | None) -> Callable[[], None]:
        """Finds the rows of an iteration to come; the function that it returns asks for them.

        Nothing is asked where it would not travel beside what follows.
        """
        if upcoming is None or not self.exchange.is_beside:
            return lambda: None
        (batch,) = upcoming()
        ask = self.exchange.prepare(self._bags(batch))

        def begin() -> None:
            self._ahead = iteration, batch, ask()

        return begin

    def _bags(self, batch: Batch) -> Bags:
        """Returns the lookups of a batch; none of one that is not sound, for which the next iteration has its ways."""
        try:
            with self._model.spans.data:
                (bags,) = self._model.bags(batch)
        except BadBatchError:
            return Bags(torch.empty(self._model.groups.num_tables, 0, dtype=torch.int32), None)
        return bags


def lookups(fetched: Callable[[], FetchedRows]) -> Callable[[], tuple[Tables, Bags]]:
    """Returns what waits for the rows as the model looks them up."""

    def rows() -> tuple[Tables, Bags]:
        found = fetched()
        return found.tables, found.bags

    return rows
