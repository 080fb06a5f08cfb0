"""The vocabulary of generated rows: the ids that training rows hold, numbered without gaps, as `prepare` would."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.config import Config
from dqrm_cpu.config.schema import KAGGLE_TABLE_ROWS
from dqrm_cpu.data.batch import Batch
from dqrm_cpu.data.synthetic.click_model import OF_KNOWN_IDS
from dqrm_cpu.data.synthetic.stream import SyntheticClicks

_ROWS_AT_ONCE = 1 << 16


class IdCounts(NamedTuple):
    """The distinct ids of one table, rising, and in how many cells each of them stands."""

    ids: NDArray[np.int32]
    counts: NDArray[np.int64]


def count_ids(source: SyntheticClicks, num_rows: int) -> tuple[IdCounts, ...]:
    """Counts the ids of each table in rows 0 to num_rows - 1."""
    tables = [IdCounts(np.empty(0, np.int32), np.empty(0, np.int64)) for _ in source.table_rows]
    for start in range(0, num_rows, _ROWS_AT_ONCE):
        batch = source.rows(start, min(start + _ROWS_AT_ONCE, num_rows))
        for t, ids in enumerate(batch.ids_by_table(len(tables))):
            tables[t] = _merged(tables[t], ids)
    return tuple(tables)


def known_ids(counts: tuple[IdCounts, ...], min_count: int) -> tuple[NDArray[np.int32], ...]:
    """Returns the ids of each table that min_count cells or more hold, rising; without id 0, which has a row anyway."""
    return tuple(one.ids[(one.counts >= min_count) & (one.ids > 0)] for one in counts)


class KnownClicks:
    """Generated rows whose ids are places in a vocabulary, from 1 on; every other category has id 0.

    That is what `prepare` makes of a log: id 0 is the row of missing cells, of rare categories and of those that no
    training row holds.
    """

    def __init__(self, source: SyntheticClicks, known: tuple[NDArray[np.int32], ...]) -> None:
        self._source = source
        self._known = known
        self.table_rows = tuple(len(ids) + 1 for ids in known)

    def rows(self, start: int, stop: int) -> Batch:
        """Returns rows start to stop - 1."""
        batch = self._source.rows(start, stop)
        for known, ids in zip(self._known, batch.ids_by_table(len(self._known)), strict=True):
            ids[:] = _places(known, ids)
        return batch


def _merged(before: IdCounts, ids: NDArray[np.int32]) -> IdCounts:
    new, new_counts = np.unique(ids, return_counts=True)
    both, places = np.unique(np.concatenate([before.ids, new]), return_inverse=True)
    counts = np.zeros(both.size, np.int64)
    np.add.at(counts, places, np.concatenate([before.counts, new_counts]))
    return IdCounts(both, counts)


def _places(known: NDArray[np.int32], ids: NDArray[np.int32]) -> NDArray[np.int32]:
    """Returns the place of each id among the known ones, from 1 on; 0 where it is not among them."""
    if not known.size:
        return np.zeros_like(ids)
    places = np.minimum(np.searchsorted(known, ids), known.size - 1)
    return np.where(known[places] == ids, places + 1, 0).astype(np.int32)


def known_clicks(config: Config) -> KnownClicks:
    """Returns the generated rows of a configuration, numbered by the ids that its training rows hold.

    They are drawn from the sizes of the Kaggle set's tables: rows whose ids are not folded, as a log holds them.
    """
    data = config.data
    source = SyntheticClicks(KAGGLE_TABLE_ROWS, config.model.num_dense, config.seed, data.max_bag_size, OF_KNOWN_IDS)
    counts = _counts(source.num_dense, source.seed, source.max_bag_size, data.train_rows)
    return KnownClicks(source, known_ids(counts, data.known_from))


@lru_cache(maxsize=8)  # a plan asks for several seeds in turn
def _counts(num_dense: int, seed: int, max_bag_size: int, train_rows: int) -> tuple[IdCounts, ...]:
    """Counts once for everybody who asks: who resolves the settings, and who opens the rows."""
    return count_ids(SyntheticClicks(KAGGLE_TABLE_ROWS, num_dense, seed, max_bag_size), train_rows)
