"""Bags in records: a word of a record says where its values are, their number first, then their ids.

In a file of the spool they lie in the order of its records, so that those of neighbouring records are neighbours. Of a
shard they are read into one array, and the words of its records then are places in that.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.data.prepare.parse.bags import BagColumn
from dqrm_cpu.data.prepare.row_layout import Layout
from dqrm_cpu.data.prepare.spool import SpoolFile, read_records, read_values
from dqrm_cpu.errors import DataError
from dqrm_cpu.kernels.jit.compile import thorough_kernel
from dqrm_cpu.kernels.jit.memory import int_at, long_at

_MOST_WORDS = 2**31 - 1


def file_values(bags: Mapping[int, BagColumn], places: NDArray[np.int32], ids: NDArray[np.int32]) -> NDArray[np.uint32]:
    """Returns the values of a block's bags in the order of its records, whose places int32[n] are given.

    Writes into ids int32[T, n], in the columns of bags, where the values of each row are.
    """
    values = np.empty(sum(bag.ids.size + places.size for bag in bags.values()), np.uint32)
    _require_words(values.size)
    order = np.empty(places.size, np.int64)
    order[places] = np.arange(places.size)
    columns = [[t, bag.ids.ctypes.data, bag.offsets.ctypes.data] for t, bag in bags.items()]
    write_values(np.array(columns, np.int64).reshape(len(bags), 3), order, ids, values)
    return values


def _require_words(count: int) -> None:
    if count > _MOST_WORDS:
        raise DataError(
            "the columns with several values hold too many in a shard or a block; give a smaller --shard-rows, or "
            "a smaller `limit` in [multi] of the schema"
        )


class RecordBags:
    """The values of the bags of some records, used again for others; nothing where a layout has no bags."""

    def __init__(self, layout: Layout) -> None:
        self.tables = np.array(layout.bag_tables, np.int64)
        self._words = layout.raw.num_dense + self.tables  # of a record
        self._values = np.empty(0, np.uint32)
        self._used = 0

    def clear(self) -> None:
        """Forgets all values."""
        self._used = 0

    def read(self, file: SpoolFile, low: int, high: int, records: NDArray[np.uint32]) -> None:
        """Reads the values of `records`, which are some of the records low to high - 1 of a file; changes their words.

        DataError where they are damaged.
        """
        if not self.tables.size or not records.shape[0]:
            return
        first, end = self._place_of(file, low), self._place_of(file, high)
        if not 0 <= first <= end <= file.header.values:
            raise _damaged(file)
        source = read_values(file, first, end)
        needed = self._used + source.size
        if needed > self._values.size:
            _require_words(needed)
            grown = np.empty(needed + needed // 8, np.uint32)
            grown[: self._used] = self._values[: self._used]
            self._values = grown
        self._used = int(copy_values(records, self._words, source, first, self._values, self._used))
        if self._used < 0:
            self._used = 0
            raise _damaged(file)

    def largest(self, records: NDArray[np.uint32], first_column: int) -> NDArray[np.uint32]:
        """Finds the largest id of each bag's table in records whose ids begin in this column."""
        largest = np.zeros(self.tables.size, np.uint32)
        largest_values(records, first_column + self.tables, self._values, largest)
        return largest

    def count(
        self,
        records: NDArray[np.uint32],
        rows: NDArray[np.int32],
        starts: NDArray[np.int64],
        counts: NDArray[np.uint32],
    ) -> None:
        """Adds in how many of these rows each id is, table by table, to the counts that begin at starts[t]."""
        count_values(records, rows, self._words, self._values, starts[self.tables], counts)

    def replace(self, records: NDArray[np.uint32], starts: NDArray[np.int64], new_id: NDArray[np.int32]) -> None:
        """Replaces ids in place by those of new_id, table by table from starts[t] on."""
        replace_values(records, self._words, self._values, starts[self.tables], new_id)

    def flattened(self, ids: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Returns the ids int32[N] of rows by table, and offsets int64[T * n + 1], as a Batch has them.

        `ids` int32[T, n] has the id of each cell, or where the values of a bag are.
        """
        is_bag = np.zeros(ids.shape[0], np.bool_)
        is_bag[self.tables] = True
        offsets = np.zeros(ids.size + 1, np.int64)
        measure_cells(ids, is_bag, self._values, offsets)
        flat = np.empty(int(offsets[-1]), np.int32)
        copy_ids(ids, is_bag, self._values, offsets, flat)
        return flat, offsets

    def _place_of(self, file: SpoolFile, number: int) -> int:
        """Returns where the values of a record begin, those of the one behind the last where they end."""
        if number == file.header.rows:
            return file.header.values
        record = np.empty((1, file.header.width), np.uint32)
        read_records(file, number, record)
        return int(record[0, self._words[0]])


def _damaged(file: SpoolFile) -> DataError:
    return DataError(f"{file.path} has values of bags that are none of its own; begin anew with --restart")


@thorough_kernel
def write_values(
    columns: NDArray[np.int64], order: NDArray[np.int64], ids: NDArray[np.int32], values: NDArray[np.uint32]
) -> None:
    """Writes values row by row in this order; columns int64[B, 3] has tables, and addresses of ids and offsets."""
    at = np.int64(0)
    for p in range(order.shape[0]):
        row = order[p]
        for b in range(columns.shape[0]):
            first, end = long_at(columns[b, 2], row), long_at(columns[b, 2], row + 1)
            ids[columns[b, 0], row] = at
            values[at] = end - first
            at += 1
            for k in range(first, end):
                values[at] = int_at(columns[b, 1], k)
                at += 1


@thorough_kernel
def copy_values(
    records: NDArray[np.uint32],
    words: NDArray[np.int64],
    source: NDArray[np.uint32],
    first: int,
    values: NDArray[np.uint32],
    used: int,
) -> Any:
    """Copies the values of records behind the `used` ones, and has their words say where; source begins at `first`.

    Returns how many are used then; -1 where a word is no place in the source.
    """
    for i in range(records.shape[0]):
        for b in range(words.shape[0]):
            place = np.int64(records[i, words[b]]) - first
            if place < 0 or place >= source.shape[0]:
                return np.int64(-1)
            end = place + 1 + np.int64(source[place])
            if end > source.shape[0] or used + end - place > values.shape[0]:
                return np.int64(-1)
            records[i, words[b]] = used
            for k in range(place, end):
                values[used] = source[k]
                used += 1
    return np.int64(used)


@thorough_kernel
def largest_values(
    records: NDArray[np.uint32], words: NDArray[np.int64], values: NDArray[np.uint32], largest: NDArray[np.uint32]
) -> None:
    """Finds the largest id of each bag's column."""
    for i in range(records.shape[0]):
        for b in range(words.shape[0]):
            at = np.int64(records[i, words[b]])
            for k in range(at + 1, at + 1 + np.int64(values[at])):
                largest[b] = max(largest[b], values[k])


@thorough_kernel
def count_values(
    records: NDArray[np.uint32],
    rows: NDArray[np.int32],
    words: NDArray[np.int64],
    values: NDArray[np.uint32],
    starts: NDArray[np.int64],
    counts: NDArray[np.uint32],
) -> None:
    """Counts in how many rows each id is: once in one that has it several times, as folding may make it."""
    for i in range(rows.shape[0]):
        for b in range(words.shape[0]):
            at = np.int64(records[rows[i], words[b]])
            for k in range(at + 1, at + 1 + np.int64(values[at])):
                is_first = True
                for before in range(at + 1, k):
                    is_first = is_first and values[before] != values[k]
                if is_first:
                    counts[starts[b] + np.int64(values[k])] += np.uint32(1)


@thorough_kernel
def replace_values(
    records: NDArray[np.uint32],
    words: NDArray[np.int64],
    values: NDArray[np.uint32],
    starts: NDArray[np.int64],
    new_id: NDArray[np.int32],
) -> None:
    """Replaces the ids of bags by those of new_id, which begin at starts[b]."""
    for i in range(records.shape[0]):
        for b in range(words.shape[0]):
            at = np.int64(records[i, words[b]])
            for k in range(at + 1, at + 1 + np.int64(values[at])):
                values[k] = np.uint32(new_id[starts[b] + np.int64(values[k])])


@thorough_kernel
def measure_cells(
    ids: NDArray[np.int32], is_bag: NDArray[np.bool_], values: NDArray[np.uint32], offsets: NDArray[np.int64]
) -> None:
    """Writes offsets of the cells, table by table: a cell that is no bag has one id."""
    done = 0
    for t in range(ids.shape[0]):
        for i in range(ids.shape[1]):
            offsets[done + 1] = offsets[done] + (np.int64(values[ids[t, i]]) if is_bag[t] else np.int64(1))
            done += 1


@thorough_kernel
def copy_ids(
    ids: NDArray[np.int32],
    is_bag: NDArray[np.bool_],
    values: NDArray[np.uint32],
    offsets: NDArray[np.int64],
    flat: NDArray[np.int32],
) -> None:
    """Copies the ids of the cells, table by table."""
    done = 0
    for t in range(ids.shape[0]):
        for i in range(ids.shape[1]):
            at, count = offsets[done], offsets[done + 1] - offsets[done]
            for k in range(count):
                flat[at + k] = np.int32(values[ids[t, i] + 1 + k]) if is_bag[t] else ids[t, i]
            done += 1
