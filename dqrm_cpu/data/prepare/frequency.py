"""Categories that are too rare for a row of their own: counted over the training rows, then sent to row 0."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.data.prepare.compiled import kernel
from dqrm_cpu.data.prepare.order import NUM_BINS, place_rows
from dqrm_cpu.data.prepare.spool import Step, read_records
from dqrm_cpu.data.prepare.statistics import largest_in_columns
from dqrm_cpu.data.store.schema import Schema
from dqrm_cpu.errors import DataError


@dataclass(frozen=True)
class Remap:
    """New ids of the ids given while reading."""

    starts: NDArray[np.int64]  # [T + 1] of the tables in new_id
    new_id: NDArray[np.int32] | None  # table after table; None where all stay
    rare_cells: tuple[int, ...]  # per column, over all rows

    def kept(self, column: int, keys: NDArray[Any]) -> NDArray[Any]:
        """The keys that keep a row, of those with ids 1, 2, ..."""
        if self.new_id is None:
            return keys
        return keys[self.new_id[self.starts[column] + 1 : self.starts[column + 1]] > 0]

    def apply(self, records: NDArray[np.uint32], first_column: int) -> None:
        """Gives records, whose ids begin in this column, the new ids."""
        if self.new_id is not None:
            replace_ids(records, first_column, self.starts, self.new_id)


def keep_all(num_tables: int) -> Remap:
    """What a threshold of 1 means."""
    return Remap(np.zeros(num_tables + 1, np.int64), None, (0,) * num_tables)


def find_rare(
    steps: Sequence[Step], schema: Schema, num_keys: list[int], num_train: int, seed: int, min_count: int
) -> Remap:
    """Keeps the categories that at least min_count training rows have, in the order of their ids."""
    starts = np.cumsum([0, *(keys + 1 for keys in num_keys)])
    train = np.zeros(int(starts[-1]), np.uint32)
    held_out = np.zeros(int(starts[-1]), np.uint32)
    for step in steps:
        records = np.empty((step.header.rows, step.header.width), np.uint32)
        read_records(step, 0, records)
        require_ids(step, records, schema, num_keys)
        places = np.empty(step.header.rows, np.int32)
        place_rows(np.uint64(seed), step.header.first_row, np.zeros(NUM_BINS + 1, np.int64), places)
        inside = max(0, min(step.header.rows, num_train - step.header.first_row))
        count_ids(records, places[:inside], schema.num_dense, starts, train)
        count_ids(records, places[inside:], schema.num_dense, starts, held_out)
    new_ids = []
    rare_cells = []
    for low, high in pairwise(starts.tolist()):
        keep = train[low:high] >= min_count
        keep[0] = False
        rare = ~keep
        rare[0] = False
        rare_cells.append(int(train[low:high][rare].sum(dtype=np.int64) + held_out[low:high][rare].sum(dtype=np.int64)))
        new_ids.append(np.where(keep, np.cumsum(keep), 0).astype(np.int32))
    return Remap(starts, np.concatenate(new_ids), tuple(rare_cells))


def require_ids(step: Step, records: NDArray[np.uint32], schema: Schema, num_keys: list[int]) -> None:
    """DataError where records have ids that no vocabulary gave: the kernels write at whatever place these name."""
    if not records.shape[0]:
        return
    ids = largest_in_columns(records)[schema.num_dense : schema.num_dense + schema.num_tables]
    if (ids > np.array(num_keys)).any():
        raise DataError(f"{step.path} has ids that no vocabulary has; begin anew with --restart")


@kernel
def count_ids(
    records: NDArray[np.uint32],
    rows: NDArray[np.int32],
    first_column: int,
    starts: NDArray[np.int64],
    counts: NDArray[np.uint32],
) -> None:
    """Adds the ids of some records, table by table, to the counts that begin at starts[t]."""
    for i in range(rows.shape[0]):
        for t in range(starts.shape[0] - 1):
            counts[starts[t] + np.int64(records[rows[i], first_column + t])] += np.uint32(1)


@kernel
def replace_ids(
    records: NDArray[np.uint32], first_column: int, starts: NDArray[np.int64], new_id: NDArray[np.int32]
) -> None:
    """The new ids, table by table from starts[t] on, in place."""
    for i in range(records.shape[0]):
        for t in range(starts.shape[0] - 1):
            found = np.int64(records[i, first_column + t])
            records[i, first_column + t] = np.uint32(new_id[starts[t] + found])
