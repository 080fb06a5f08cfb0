"""The order of rows: which bin a row falls into while sources are read, and the shuffle within a shard.

A row's bin depends on (seed, number of the row) alone. Shards are groups of neighbouring bins, so how many shards
there will be need not be known while rows are read.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.data.prepare.compiled import inlined, kernel
from dqrm_cpu.data.prepare.fields import mix
from dqrm_cpu.data.prepare.words import prefetch

NUM_BINS = 1024

_BIN_SHIFT = np.uint64(54)
_STRIDE = np.uint64(0x9E3779B97F4A7C15)
_AHEAD = 4
_ROWS_AT_ONCE = 64


@inlined
def bin_of(seed: Any, row: int) -> Any:
    """0 to NUM_BINS - 1."""
    return np.int64(mix(seed + np.uint64(row) * _STRIDE) >> _BIN_SHIFT)


@kernel
def place_rows(seed: Any, first_row: int, bounds: NDArray[np.int64], places: NDArray[np.int32]) -> None:
    """Row first_row + i belongs at places[i]: by bin, and in order within one. bounds int64[NUM_BINS + 1] is filled."""
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


@kernel
def count_in_bins(seed: Any, first_row: int, num_rows: int, counts: NDArray[np.int64]) -> None:
    """Adds rows first_row to first_row + num_rows - 1 to the counts int64[NUM_BINS] of their bins."""
    for row in range(first_row, first_row + num_rows):
        counts[bin_of(seed, row)] += 1


class Columns(NamedTuple):
    """Rows column by column, as records hold them row by row: the bits of D dense values, T ids, a label."""

    label: NDArray[Any]  # unsigned [n]
    dense: NDArray[np.uint32]  # [n, D]
    ids: NDArray[np.int32]  # [T, n], or longer


@kernel
def to_records(places: NDArray[np.int32], columns: Columns, records: NDArray[np.uint32]) -> None:
    """Row i becomes records[places[i]]."""
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


@kernel
def by_bin(counts: NDArray[np.int64], order: NDArray[np.int64]) -> None:
    """Records that lie step by step, counts[step, bin] of each bin, in the order of bins and within one of rows.

    Without it, the order would depend on where one step ended and the next began.
    """
    num_steps, num_bins = counts.shape
    starts = np.empty((num_steps, num_bins), np.int64)
    done = 0
    for s in range(num_steps):
        for b in range(num_bins):
            starts[s, b] = done
            done += counts[s, b]
    place = 0
    for b in range(num_bins):
        for s in range(num_steps):
            for k in range(counts[s, b]):
                order[place] = starts[s, b] + k
                place += 1


@kernel
def shuffled(seed: Any, count: int) -> NDArray[np.int64]:
    """A permutation of 0 to count - 1 (Fisher and Yates)."""
    order = np.arange(count)
    state = mix(seed)
    for i in range(count - 1, 0, -1):
        state += _STRIDE
        # The upper bits times the range: no division, and a bias far below one part in 2^32.
        other = np.int64(((mix(state) >> np.uint64(32)) * np.uint64(i + 1)) >> np.uint64(32))
        order[i], order[other] = order[other], order[i]
    return order


@kernel
def copy_records(records: NDArray[np.uint32], order: NDArray[np.int64], copies: NDArray[np.uint32]) -> None:
    """copies[i] is records[order[i]]."""
    for i in range(order.shape[0]):
        source = order[i]
        for k in range(records.shape[1]):
            copies[i, k] = records[source, k]


@kernel
def from_records(records: NDArray[np.uint32], order: NDArray[np.int64], columns: Columns) -> None:
    """Row i of the columns is records[order[i]]."""
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
                prefetch(start, ahead + line)
            for d in range(num_dense):
                dense[i, d] = records[source, d]
            label[i] = np.uint8(records[source, num_dense + num_tables])
        for t in range(num_tables):
            for i in range(low, high):
                ids[t, i] = np.int32(records[order[i], num_dense + t])
