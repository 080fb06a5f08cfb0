"""Which categories have a row: frequent ones, and known ones but for those that no data set has had for long.

Training rows are counted over all data sets of a chain, each grown from the one before. A category with too few of them
waits: its key and its count lie in the history beside the vocabulary.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.data.prepare.output.rare import CellCounts, IdRemap, keep_only
from dqrm_cpu.data.prepare.request import VocabularySettings
from dqrm_cpu.data.prepare.vocabulary.history import ColumnHistory, History
from dqrm_cpu.data.prepare.vocabulary.vocabulary import Vocabulary

MOST_WAITING = 1 << 22
"""Categories of a column that wait at most, 80 MB of them; those go first that were seen the longest ago."""


class Admission(NamedTuple):
    """Who has a row, and what is remembered for the next data set."""

    remap: IdRemap
    history: History
    added: tuple[int, ...]  # categories of each column that are new in the vocabulary
    evicted: tuple[int, ...]  # that left it


def admit(
    counts: CellCounts,
    vocabularies: Sequence[Vocabulary],
    before: History,
    settings: VocabularySettings,
    zero_rows: Sequence[NDArray[np.bool_]] = (),
) -> Admission:
    """Decides for every category of the vocabulary before, which come first, and of the rows.

    `zero_rows`, bool[ids] of each column: known categories that leave as soon as no row has them.
    """
    data_set = before.data_set + 1
    kept, columns, added, evicted = [], [], [], []
    bounds = pairwise(counts.starts.tolist())
    for t, (vocabulary, column, (low, high)) in enumerate(zip(vocabularies, before.columns, bounds, strict=True)):
        train, held_out = (part[low:high].astype(np.int64) for part in (counts.train, counts.held_out))
        unneeded = zero_rows[t][1:] if zero_rows else None
        waiting_ids = np.empty(column.waiting.size, np.int32)
        vocabulary.find(column.waiting, waiting_ids)
        seen = ColumnCells(vocabulary.keys, train, held_out, waiting_ids)
        keep, after = admit_column(seen, column, data_set, settings, unneeded)
        num_known = column.last_seen.size
        kept.append(keep)
        columns.append(after)
        added.append(int(np.count_nonzero(keep[1 + num_known :])))
        evicted.append(num_known - int(np.count_nonzero(keep[1 : 1 + num_known])))
    return Admission(keep_only(counts, kept), History(data_set, tuple(columns)), tuple(added), tuple(evicted))


class ColumnCells(NamedTuple):
    """The categories of a column, and how many rows have each of them: int64[ids], the first of missing ones."""

    keys: NDArray[Any]  # of ids 1, 2, ...
    train: NDArray[np.int64]
    held_out: NDArray[np.int64]
    waiting_ids: NDArray[np.int32]  # of those that have waited for a row until now, 0 where no row has them


def admit_column(
    cells: ColumnCells,
    before: ColumnHistory,
    data_set: int,
    settings: VocabularySettings,
    unneeded: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.bool_], ColumnHistory]:
    """Decides which ids have a row, given how many rows have them; returns bool[ids], and what is remembered."""
    keys, train, held_out, waiting_ids = cells
    num_known = before.last_seen.size
    oldest = data_set - settings.evict_unseen + 1 if settings.evict_unseen else 0
    came = waiting_ids > 0
    total = train.copy()
    total[waiting_ids[came]] += before.waiting_rows[came]
    keep = total >= settings.min_count if settings.min_count > 1 else np.ones(total.size, np.bool_)
    last_seen = np.full(total.size - 1, data_set, np.int32)
    is_seen = (train[1 : 1 + num_known] > 0) | (held_out[1 : 1 + num_known] > 0)
    last_seen[:num_known] = np.where(is_seen, data_set, before.last_seen)
    keep[1 : 1 + num_known] = last_seen[:num_known] >= oldest
    if unneeded is not None:
        keep[1 : 1 + num_known] &= is_seen | ~unneeded

    waits = ~keep & (total > 0)
    waits[: 1 + num_known] = False
    stays = ~came & (before.waiting_seen >= oldest)
    waiting = np.concatenate([before.waiting[stays], keys[waits[1:]]])
    rows = np.concatenate([before.waiting_rows[stays], np.minimum(total[waits], 2**32 - 1).astype(np.uint32)])
    seen = np.concatenate([before.waiting_seen[stays], last_seen[waits[1:]]])
    chosen = np.lexsort((waiting, -rows.astype(np.int64), -seen))[:MOST_WAITING]
    chosen = chosen[np.argsort(waiting[chosen])]
    return keep, ColumnHistory(last_seen[keep[1:]], waiting[chosen], rows[chosen], seen[chosen])
