"""Cells counted by their category once all rows are read, and ids without a row of their own mapped to row 0."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.data.prepare.bag_records import RecordBags
from dqrm_cpu.data.prepare.output.split import BinSplit
from dqrm_cpu.data.prepare.output.time_split import TimeParts
from dqrm_cpu.data.prepare.records import NUM_BINS, largest_in_columns, place_rows
from dqrm_cpu.data.prepare.row_layout import Layout
from dqrm_cpu.data.prepare.spool import SpoolFile, read_records
from dqrm_cpu.errors import DataError
from dqrm_cpu.kernels.jit.compile import thorough_kernel


@dataclass(frozen=True)
class IdRemap:
    """Maps the ids given while reading to new ones, 0 for a category that has no row."""

    starts: NDArray[np.int64]  # [T + 1] of the tables in new_id
    new_id: NDArray[np.int32] | None  # table after table; None where all stay
    rare_cells: tuple[int, ...]  # per column, over all rows; of bags, their values

    def kept(self, column: int, keys: NDArray[Any]) -> NDArray[Any]:
        """Selects the keys that keep a row, of those with ids 1, 2, ..."""
        if self.new_id is None:
            return keys
        return keys[self.new_id[self.starts[column] + 1 : self.starts[column + 1]] > 0]

    def apply(self, records: NDArray[np.uint32], first_column: int, bags: RecordBags) -> None:
        """Replaces the ids of records, which begin in this column, and those of their bags."""
        if self.new_id is not None:
            single = single_tables(self.starts.size - 1, bags)
            replace_ids(records, first_column, single, self.starts, self.new_id)
            bags.replace(records, self.starts, self.new_id)


def keep_all(num_tables: int) -> IdRemap:
    """Returns the map of a vocabulary of which every category has a row."""
    return IdRemap(np.zeros(num_tables + 1, np.int64), None, (0,) * num_tables)


class CellCounts(NamedTuple):
    """Counts how many cells have each of the ids that were given while reading: uint32[ids], table after table."""

    starts: NDArray[np.int64]  # [T + 1] of the tables
    train: NDArray[np.uint32]  # of training rows
    held_out: NDArray[np.uint32]  # of the others


def count_cells(
    files: Sequence[SpoolFile],
    layout: Layout,
    num_keys: list[int],
    num_train: int,
    seed: int,
    parts: TimeParts | None = None,
    bins: BinSplit | None = None,
) -> CellCounts:
    """Counts the cells of all rows, of bags the rows that have each value.

    The first num_train rows are for training, or those that `parts` chooses, or those of the training part's `bins`.
    """
    first_id, bags = layout.raw.num_dense, RecordBags(layout)
    single = single_tables(len(num_keys), bags)
    starts = np.cumsum([0, *(keys + 1 for keys in num_keys)])
    train = np.zeros(int(starts[-1]), np.uint32)
    held_out = np.zeros(int(starts[-1]), np.uint32)
    for file in files:
        records = np.empty((file.header.rows, file.header.width), np.uint32)
        read_records(file, 0, records)
        bags.clear()
        bags.read(file, 0, file.header.rows, records)
        _require_ids(file, records, first_id, bags, num_keys)
        places = np.empty(file.header.rows, np.int32)
        place_rows(np.uint64(seed), file.header.first_row, np.zeros(NUM_BINS + 1, np.int64), places)
        inside = max(0, min(file.header.rows, num_train - file.header.first_row))
        if parts is not None:
            is_train = parts.chosen(records, "train")[places]
            places, inside = np.concatenate([places[is_train], places[~is_train]]), int(np.count_nonzero(is_train))
        if bins is not None:
            places, inside = np.arange(file.header.rows, dtype=np.int32), int(file.bounds[bins.train])
        for rows, counts in ((places[:inside], train), (places[inside:], held_out)):
            count_ids(records, rows, first_id, single, starts, counts)
            bags.count(records, rows, starts, counts)
    return CellCounts(starts, train, held_out)


def keep_only(counts: CellCounts, kept: Sequence[NDArray[np.bool_]]) -> IdRemap:
    """Maps ids to row 0 but for those that are kept, bool[ids] of each table, which are numbered in their order."""
    if all(keep[1:].all() for keep in kept):
        return keep_all(len(kept))
    new_ids = []
    rare_cells = []
    for keep, (low, high) in zip(kept, pairwise(counts.starts.tolist()), strict=True):
        numbered = keep.copy()
        numbered[0] = False
        gone = ~numbered
        gone[0] = False
        cells = (part[low:high][gone].sum(dtype=np.int64) for part in (counts.train, counts.held_out))
        rare_cells.append(int(sum(cells)))
        new_ids.append(np.where(numbered, np.cumsum(numbered), 0).astype(np.int32))
    return IdRemap(counts.starts, np.concatenate(new_ids), tuple(rare_cells))


def single_tables(num_tables: int, bags: RecordBags) -> NDArray[np.int64]:
    """Lists the tables whose ids stand in the records themselves."""
    return np.setdiff1d(np.arange(num_tables), bags.tables)


def _require_ids(
    file: SpoolFile, records: NDArray[np.uint32], first_id: int, bags: RecordBags, num_keys: list[int]
) -> None:
    """Raises DataError where records have ids that no vocabulary gave: kernels write at whatever place these name."""
    if not records.shape[0]:
        return
    ids = largest_in_columns(records)[first_id : first_id + len(num_keys)]
    ids[bags.tables] = bags.largest(records, first_id)
    if (ids > np.array(num_keys)).any():
        raise DataError(f"{file.path} has ids that no vocabulary has; begin anew with --restart")


@thorough_kernel
def count_ids(
    records: NDArray[np.uint32],
    rows: NDArray[np.int32],
    first_column: int,
    tables: NDArray[np.int64],
    starts: NDArray[np.int64],
    counts: NDArray[np.uint32],
) -> None:
    """Adds the ids of some records, of each of these tables, to the counts that begin at starts[t]."""
    for i in range(rows.shape[0]):
        for t in tables:
            counts[starts[t] + np.int64(records[rows[i], first_column + t])] += np.uint32(1)


@thorough_kernel
def replace_ids(
    records: NDArray[np.uint32],
    first_column: int,
    tables: NDArray[np.int64],
    starts: NDArray[np.int64],
    new_id: NDArray[np.int32],
) -> None:
    """Replaces ids of each of these tables in place by those of new_id, from starts[t] on."""
    for i in range(records.shape[0]):
        for t in tables:
            old_id = np.int64(records[i, first_column + t])
            records[i, first_column + t] = np.uint32(new_id[starts[t] + old_id])
