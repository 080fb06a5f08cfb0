"""Ids by how many rows have them: counted in one pass, and rows of which only the common ids are left."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.data.batch import Batch
from dqrm_cpu.data.source import DataSet, Part, RowSource

_ROWS_AT_ONCE = 1 << 16


def id_counts(
    part: Part, table_rows: Sequence[int], num_rows: int, advance: Callable[[int], object] = lambda rows: None
) -> list[NDArray[np.int64]]:
    """Counts the cells of the first rows that hold each id, int64[rows] of each table; `advance` hears of rows."""
    counts = [np.zeros(rows, np.int64) for rows in table_rows]
    for batch in _batches(part, num_rows):
        for count, ids in zip(counts, batch.ids_by_table(len(counts)), strict=True):
            count += np.bincount(ids, minlength=count.size)
        advance(batch.size)
    return counts


def common(counts: Sequence[NDArray[np.int64]], min_count: int) -> list[NDArray[np.bool_]]:
    """Returns which ids stand in min_count cells or more, bool[rows] of each table; id 0 has its row anyway."""
    kept = [count >= min_count for count in counts]
    for keep in kept:
        keep[0] = True
    return kept


def rows_of(kept: Sequence[NDArray[np.bool_]]) -> tuple[int, ...]:
    """Returns the sizes of tables that hold these ids alone."""
    return tuple(int(np.count_nonzero(keep)) for keep in kept)


def places(kept: Sequence[NDArray[np.bool_]]) -> list[NDArray[np.int32]]:
    """Returns what each id becomes, its place among those that are kept, others 0: int32[rows] of each table."""
    return [np.where(keep, np.cumsum(keep) - 1, 0).astype(np.int32) for keep in kept]


def with_common_ids(data: DataSet, kept: Sequence[NDArray[np.bool_]], train_rows: int) -> DataSet:
    """Returns the first training rows, and the others, with ids that are places among the common ones, others 0."""
    new_ids = places(kept)

    def of_common(part: Part, num_rows: int) -> Part:
        source = CommonIds(part.source, new_ids)
        return replace(part, source=source, num_rows=num_rows)

    return replace(
        data,
        train=of_common(data.train, train_rows),
        validation=of_common(data.validation, data.validation.num_rows),
        test=of_common(data.test, data.test.num_rows),
    )


class CommonIds:
    """Rows of another source, whose ids are replaced by those of `new_ids`, int32[rows] of each table."""

    def __init__(self, source: RowSource, new_ids: Sequence[NDArray[np.int32]]) -> None:
        self.origin = source
        self._new_ids = new_ids

    def rows(self, start: int, stop: int) -> Batch:
        """Returns rows start to stop - 1."""
        batch = self.origin.rows(start, stop)
        for new_id, ids in zip(self._new_ids, batch.ids_by_table(len(self._new_ids)), strict=True):
            ids[:] = new_id[ids]
        return batch


def _batches(part: Part, num_rows: int) -> Iterator[Batch]:
    for start in range(0, num_rows, _ROWS_AT_ONCE):
        yield part.rows(start, min(start + _ROWS_AT_ONCE, num_rows))
