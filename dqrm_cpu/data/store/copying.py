"""Rows out of mapped blocks into the arrays of batches: the loader's inner loops, which leave the interpreter free.

A share of n rows that starts at row `at` of its target takes label[at : at + n], dense[at : at + n] and, column by
column, ids[T * at : T * (at + n)].
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.data.store.layout import BLOCK_ROWS
from dqrm_cpu.kernels.jit.compile import serial, thorough_kernel
from dqrm_cpu.kernels.jit.memory import carray, pointer


class Places(NamedTuple):
    """The places of the G blocks of a part in memory, and how their S shards lay out the T columns of ids."""

    block_start: NDArray[np.int64]  # [G + 1] first row of each block
    shard: NDArray[np.int32]  # [G]
    label: NDArray[np.int64]  # [G] address of each section; 0 where the block is not mapped
    dense: NDArray[np.int64]
    ids: NDArray[np.int64]
    offsets: NDArray[np.int64]
    last_block: NDArray[np.int64]  # [S] the block of each shard whose columns lie closer, being shorter
    column: NDArray[np.int64]  # [S, 2, T] where columns start in the ids of a full block, and of the last
    width: NDArray[np.int64]  # [S, T] bytes of an id


class Target(NamedTuple):
    """The arrays that rows are copied to."""

    dense: NDArray[np.float32]  # [n, D]
    ids: NDArray[np.int32]  # [T * n]
    label: NDArray[np.float32]  # [n]
    weight: NDArray[np.float32]  # [n], the last of D + 1 stored columns; [0]: there are D, and no weights


@serial
def _find_block(block_start: Any, row: int) -> int:
    """Finds the block that holds a row: no block has more than BLOCK_ROWS, only the last one of a shard has fewer."""
    low = row // BLOCK_ROWS
    high = block_start.size - 1
    if low + 8 < high:
        if block_start[low + 8] > row:
            high = low + 8
        else:
            low += 8
    while high - low > 1:
        middle = (low + high) // 2
        if block_start[middle] <= row:
            low = middle
        else:
            high = middle
    return low


@serial
def _column_address(places: Any, block: int, table: int) -> Any:
    shard = places.shard[block]
    short = 1 if places.last_block[shard] == block else 0
    return places.ids[block] + places.column[shard, short, table]


@serial
def _copy_column(address: int, width: int, first: int, out: Any) -> None:
    """Ids first to first + out.size - 1 of a column, widened."""
    count = out.size
    if width == 1:
        narrow = carray(pointer(address + first), count, np.uint8)
        for i in range(count):
            out[i] = narrow[i]
    elif width == 2:
        middle = carray(pointer(address + 2 * first), count, np.uint16)
        for i in range(count):
            out[i] = middle[i]
    else:
        wide = carray(pointer(address + 4 * first), count, np.int32)
        for i in range(count):
            out[i] = wide[i]


@thorough_kernel
def unmapped_in_runs(places: Any, first_row: Any, num_rows: Any, unmapped: Any) -> int:
    """Notes up to unmapped.size blocks that these runs touch and that are not mapped; returns how many."""
    count = 0
    for s in range(first_row.size):
        block = _find_block(places.block_start, first_row[s])
        while (
            count < unmapped.size
            and block < places.shard.size
            and places.block_start[block] < first_row[s] + num_rows[s]
        ):
            count = _note_unmapped(places, block, unmapped, count)
            block += 1
    return count


@thorough_kernel
def unmapped_in_rows(places: Any, rows: Any, unmapped: Any) -> int:
    """Notes blocks that are not mapped, as unmapped_in_runs does, for rows in any order."""
    count = 0
    for i in range(rows.size):
        if count < unmapped.size:
            count = _note_unmapped(places, _find_block(places.block_start, rows[i]), unmapped, count)
    return count


@serial
def _note_unmapped(places: Any, block: int, unmapped: Any, count: int) -> int:
    if places.label[block] != 0:
        return count
    for k in range(count):
        if unmapped[k] == block:
            return count
    unmapped[count] = block
    return count + 1


@thorough_kernel
def copy_runs(places: Any, first_row: Any, num_rows: Any, at: Any, target: Any) -> None:
    """Copies num_rows[s] consecutive rows from first_row[s] on, which are share s, to row at[s]; one id per column."""
    num_tables = places.width.shape[1]
    num_dense = target.dense.shape[1]
    for s in range(first_row.size):
        row, done = first_row[s], 0
        block = _find_block(places.block_start, row)
        while done < num_rows[s]:
            first = row - places.block_start[block]
            count = min(places.block_start[block + 1] - row, num_rows[s] - done)
            to = at[s] + done
            label = carray(pointer(places.label[block] + first), count, np.uint8)
            for i in range(count):
                target.label[to + i] = label[i]
            stored = num_dense + (1 if target.weight.size else 0)
            dense = carray(pointer(places.dense[block] + 4 * stored * first), count * stored, np.float32)
            if target.weight.size:
                _part_weights(dense, target.dense[to : to + count], target.weight[to : to + count])
            else:
                out = target.dense[to : to + count].reshape(count * num_dense)
                for i in range(count * num_dense):
                    out[i] = dense[i]
            for t in range(num_tables):
                start = num_tables * at[s] + t * num_rows[s] + done
                width = places.width[places.shard[block], t]
                _copy_column(_column_address(places, block, t), width, first, target.ids[start : start + count])
            row, done, block = row + count, done + count, block + 1


@serial
def _part_weights(stored: Any, dense: Any, weight: Any) -> None:
    """Parts stored rows, each of D dense values and a weight, into dense [n, D] and weight [n]."""
    num_dense = dense.shape[1]
    for i in range(weight.size):
        for k in range(num_dense):
            dense[i, k] = stored[i * (num_dense + 1) + k]
        weight[i] = stored[i * (num_dense + 1) + num_dense]


@thorough_kernel
def gather_dense(places: Any, rows: Any, dense: Any, label: Any, weight: Any) -> None:
    """Copies dense values, labels and, where `weight` has room for them, weights of these rows."""
    num_dense = dense.shape[1]
    stored = num_dense + (1 if weight.size else 0)
    for i in range(rows.size):
        block = _find_block(places.block_start, rows[i])
        place = rows[i] - places.block_start[block]
        values = carray(pointer(places.dense[block] + 4 * stored * place), stored, np.float32)
        for k in range(num_dense):
            dense[i, k] = values[k]
        if weight.size:
            weight[i] = values[num_dense]
        label[i] = carray(pointer(places.label[block] + place), 1, np.uint8)[0]


@thorough_kernel
def gather_rows(places: Any, rows: Any, num_rows: Any, at: Any, target: Any) -> None:
    """Copies the num_rows[s] rows that stand in `rows` from at[s] on, which are share s; one id per column."""
    num_tables = places.width.shape[1]
    places_of = np.empty((rows.size, 3), np.int64)
    for i in range(rows.size):
        block = _find_block(places.block_start, rows[i])
        shard = places.shard[block]
        places_of[i, 0] = places.ids[block]
        places_of[i, 1] = 2 * shard + (1 if places.last_block[shard] == block else 0)
        places_of[i, 2] = rows[i] - places.block_start[block]
    gather_dense(places, rows, target.dense, target.label, target.weight)
    # Column by column: what is read by chance then stays within one column of the window.
    for s in range(num_rows.size):
        for t in range(num_tables):
            start = num_tables * at[s] + t * num_rows[s] - at[s]
            _gather_column(places, t, places_of, at[s], at[s] + num_rows[s], start, target.ids)


@serial
def _gather_column(places: Any, t: int, places_of: Any, first: int, after: int, to: int, ids: Any) -> None:
    """Rows first to after - 1 of one column, to ids[to + first] and on. Slices would count references per cell."""
    for i in range(first, after):
        layout, place = places_of[i, 1], places_of[i, 2]
        address = places_of[i, 0] + places.column[layout >> 1, layout & 1, t]
        width = places.width[layout >> 1, t]
        if width == 1:
            ids[to + i] = carray(pointer(address + place), 1, np.uint8)[0]
        elif width == 2:
            ids[to + i] = carray(pointer(address + 2 * place), 1, np.uint16)[0]
        else:
            ids[to + i] = carray(pointer(address + 4 * place), 1, np.int32)[0]


@thorough_kernel
def count_ids(places: Any, rows: Any, offsets: Any) -> None:
    """Computes offsets int64[T * n + 1] of the bags of these rows, table by table; rows in the order given."""
    num_tables, count = places.width.shape[1], rows.size
    offsets[0] = 0
    for t in range(num_tables):
        for i in range(count):
            block = _find_block(places.block_start, rows[i])
            bounds = _bag_bounds(places, block, t, rows[i])
            offsets[t * count + i + 1] = offsets[t * count + i] + bounds[1] - bounds[0]


@thorough_kernel
def gather_bags(places: Any, rows: Any, offsets: Any, ids: Any) -> None:
    """Copies the ids of those bags: int32[offsets[T * n]]."""
    num_tables, count = places.width.shape[1], rows.size
    for t in range(num_tables):
        for i in range(count):
            block = _find_block(places.block_start, rows[i])
            bounds = _bag_bounds(places, block, t, rows[i])
            out = ids[offsets[t * count + i] : offsets[t * count + i + 1]]
            _copy_column(places.ids[block], 4, bounds[0], out)


@serial
def _bag_bounds(places: Any, block: int, table: int, row: int) -> Any:
    first, after = places.block_start[block], places.block_start[block + 1]
    place = table * (after - first) + row - first
    return carray(pointer(places.offsets[block] + 4 * place), 2, np.int32)
