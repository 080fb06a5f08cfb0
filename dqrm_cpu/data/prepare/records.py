"""Rows as records: sorted into bins while sources are read, shuffled within a shard, turned into columns and back.

A row's bin depends on (seed, number of the row) alone. Shards are groups of neighbouring bins, so how many shards
there will be need not be known while rows are read.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.kernels.jit.compile import inlined, thorough_kernel
from dqrm_cpu.kernels.jit.hashing import INCREMENT, mix64, splitmix64
from dqrm_cpu.kernels.jit.memory import prefetch_byte

NUM_BINS = 1024

_BIN_SHIFT = np.uint64(54)
_AHEAD = 4
_ROWS_AT_ONCE = 64
_LARGEST = float(np.finfo(np.float64).max)  # finite, as JSON wants it


@inlined
def bin_of(seed: Any, row: int) -> Any:
    """Returns the bin of a row, 0 to NUM_BINS - 1."""
    return np.int64(splitmix64(seed, row) >> _BIN_SHIFT)


@thorough_kernel
def place_rows(seed: Any, first_row: int, bounds: NDArray[np.int64], places: NDArray[np.int32]) -> None:
    """Writes to places[i] where row first_row + i belongs: by bin, then in order. Fills bounds int64[NUM_BINS + 1]."""
    count = places.shape[0]
    bounds[:] = 0
    for i in range(count):
        number = bin_of(seed, first_row + i)
        places[i] = number
        bounds[number + 1] += 1
    for b in range(NUM_BINS):
        bounds[b + 1] += bounds[b]
    following = bounds[:NUM_BINS].copy()
    for i in range(count):
        number = places[i]
        places[i] = following[number]
        following[number] += 1


@thorough_kernel
def count_in_bins(seed: Any, first_row: int, num_rows: int, counts: NDArray[np.int64]) -> None:
    """Adds rows first_row to first_row + num_rows - 1 to the counts int64[NUM_BINS] of their bins."""
    for row in range(first_row, first_row + num_rows):
        counts[bin_of(seed, row)] += 1


class Columns(NamedTuple):
    """Rows column by column, as records hold them row by row: the bits of D dense values, T ids, a label."""

    label: NDArray[Any]  # unsigned [n]
    dense: NDArray[np.uint32]  # [n, D]
    ids: NDArray[np.int32]  # [T, n], or longer


@thorough_kernel
def to_records(places: NDArray[np.int32], columns: Columns, records: NDArray[np.uint32]) -> None:
    """Writes row i of the columns to records[places[i]]."""
    label, dense, ids = columns
    count, num_dense = dense.shape
    num_tables = ids.shape[0]
    for low in range(0, count, _ROWS_AT_ONCE):
        high = min(count, low + _ROWS_AT_ONCE)
        for i in range(low, high):
            place = places[i]
            for d in range(num_dense):
                records[place, d] = dense[i, d]
            records[place, num_dense + num_tables] = label[i]
        for t in range(num_tables):
            for i in range(low, high):
                records[places[i], num_dense + t] = np.uint32(ids[t, i])


@thorough_kernel
def by_bin(counts: NDArray[np.int64], order: NDArray[np.int64]) -> None:
    """Orders records that lie file by file, counts[file, bin] of each bin, by bins and within one by rows.

    Without it, the order would depend on where one file ended and the next began.
    """
    num_files, num_bins = counts.shape
    starts = np.empty((num_files, num_bins), np.int64)
    done = 0
    for s in range(num_files):
        for b in range(num_bins):
            starts[s, b] = done
            done += counts[s, b]
    place = 0
    for b in range(num_bins):
        for s in range(num_files):
            for k in range(counts[s, b]):
                order[place] = starts[s, b] + k
                place += 1


@thorough_kernel
def shuffled(seed: Any, count: int) -> NDArray[np.int64]:
    """Makes a permutation of 0 to count - 1 (Fisher and Yates)."""
    order = np.arange(count)
    state = mix64(seed)
    for i in range(count - 1, 0, -1):
        state += INCREMENT
        # The upper bits times the range: no division, and a bias far below one part in 2^32.
        other = np.int64(((mix64(state) >> np.uint64(32)) * np.uint64(i + 1)) >> np.uint64(32))
        order[i], order[other] = order[other], order[i]
    return order


@thorough_kernel
def copy_records(records: NDArray[np.uint32], order: NDArray[np.int64], copies: NDArray[np.uint32]) -> None:
    """Copies records[order[i]] to copies[i]."""
    for i in range(order.shape[0]):
        source = order[i]
        for k in range(records.shape[1]):
            copies[i, k] = records[source, k]


@thorough_kernel
def from_records(records: NDArray[np.uint32], order: NDArray[np.int64], columns: Columns) -> None:
    """Writes records[order[i]] to row i of the columns."""
    label, dense, ids = columns
    count, num_dense = dense.shape
    num_tables = ids.shape[0]
    start, width = records.ctypes.data, 4 * records.shape[1]
    for low in range(0, count, _ROWS_AT_ONCE):
        high = min(count, low + _ROWS_AT_ONCE)
        for i in range(low, high):
            source = order[i]
            ahead = order[min(i + _AHEAD, count - 1)] * width
            for line in range(0, width, 64):
                prefetch_byte(start, ahead + line)
            for d in range(num_dense):
                dense[i, d] = records[source, d]
            label[i] = np.uint8(records[source, num_dense + num_tables])
        for t in range(num_tables):
            for i in range(low, high):
                ids[t, i] = np.int32(records[order[i], num_dense + t])


@thorough_kernel
def dense_statistics(dense: NDArray[np.float32], out: Any) -> None:
    """Writes sums, minima and maxima of the columns of f32[n, D] to f64[3, D]; NaN is a value that is missing."""
    sums, low, high = out[0], out[1], out[2]
    sums[:] = 0.0
    low[:] = _LARGEST
    high[:] = -_LARGEST
    for i in range(dense.shape[0]):
        for d in range(dense.shape[1]):
            value = np.float64(dense[i, d])
            if value == value:
                sums[d] += value
                low[d] = min(low[d], value)
                high[d] = max(high[d], value)


def largest_in_columns(records: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Finds the largest word of each column, many rows at a time: NumPy is quick along long rows."""
    count, width = records.shape
    whole = count - count % _ROWS_AT_ONCE
    wide = records[:whole].reshape(-1, _ROWS_AT_ONCE * width).max(axis=0, initial=0)
    largest: NDArray[np.uint32] = np.concatenate([wide.reshape(-1, width), records[whole:]]).max(axis=0)
    return largest
