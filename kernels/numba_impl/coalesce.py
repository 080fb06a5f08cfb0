"""From a batch's pooled gradient to a sparse one: lookups sorted by row, gradients of equal rows summed in order."""

from typing import NamedTuple

import numpy as np
from numba import prange
from numpy.typing import NDArray

from .compiled import parallel, serial
from .lookups import Lookups, bag_length, sample_of
from .vector import LANES, add, divide, load_part, splat, store_part

_RADIX_BITS = 8
_ROWS_PER_ITEM = 256


class Sorted(NamedTuple):
    """The lookups of every table sorted by row, stably; the part of a table lies where its ids do."""

    row: NDArray[np.int32]  # [N]
    position: NDArray[np.int32]  # [N], into the ids
    start: NDArray[np.int64]  # [N]: per unique row of the table, where its lookups begin
    num_unique: NDArray[np.int64]  # [T]


@parallel
def sort_lookups(first_row: NDArray[np.int64], lookups: Lookups, result: Sorted, spare: Sorted) -> None:
    """Fills `result`; `spare` is scratch memory of the same shape."""
    for table in prange(first_row.size - 1):
        _sort_table(table, first_row[table + 1] - first_row[table] - 1, lookups, result, spare)


@serial
def _sort_table(table: int, largest_row: int, lookups: Lookups, result: Sorted, spare: Sorted) -> None:
    start, end = lookups.table_start[table], lookups.table_start[table + 1]
    row, position = result.row[start:end], result.position[start:end]
    row[:] = lookups.ids[start:end]
    for i in range(start, end):
        position[i - start] = i
    _radix_sort(row, position, spare.row[start:end], spare.position[start:end], largest_row)
    count = 0
    for i in range(row.size):
        if i == 0 or row[i] != row[i - 1]:
            result.start[start + count] = start + i
            count += 1
    result.num_unique[table] = count


@serial
def _radix_sort(
    keys: NDArray[np.int32],
    values: NDArray[np.int32],
    spare_keys: NDArray[np.int32],
    spare_values: NDArray[np.int32],
    largest_key: int,
) -> None:
    """Stable; sorts keys of 0 to largest_key in place and carries values along."""
    count = np.empty(1 << _RADIX_BITS, np.int64)
    shift = 0
    while shift == 0 or largest_key >> shift:
        count[:] = 0
        for key in keys:
            count[(key >> shift) & ((1 << _RADIX_BITS) - 1)] += 1
        at = 0
        for digit in range(count.size):
            count[digit], at = at, at + count[digit]
        for i in range(keys.size):
            digit = (keys[i] >> shift) & ((1 << _RADIX_BITS) - 1)
            spare_keys[count[digit]] = keys[i]
            spare_values[count[digit]] = values[i]
            count[digit] += 1
        keys[:] = spare_keys
        values[:] = spare_values
        shift += _RADIX_BITS


@parallel
def sum_sorted(
    lookups: Lookups,
    ordered: Sorted,
    grad_features: NDArray[np.float32],
    table_ptr: NDArray[np.int64],
    rows: NDArray[np.int32],
    values: NDArray[np.float32],
) -> None:
    """Writes rows [N'] and values [N', D] of the sparse gradient."""
    num_items = (rows.size + _ROWS_PER_ITEM - 1) // _ROWS_PER_ITEM
    for item in prange(num_items):
        first = item * _ROWS_PER_ITEM
        table = np.searchsorted(table_ptr, first, side="right") - 1
        for entry in range(first, min(rows.size, first + _ROWS_PER_ITEM)):
            while entry >= table_ptr[table + 1]:
                table += 1
            begin = lookups.table_start[table]
            unique = entry - table_ptr[table]
            start, end = ordered.start[begin + unique], lookups.table_start[table + 1]
            if unique + 1 < ordered.num_unique[table]:
                end = ordered.start[begin + unique + 1]
            rows[entry] = ordered.row[start]
            _sum_lookups(lookups, table, ordered.position[start:end], grad_features, values[entry])


@serial
def _sum_lookups(
    lookups: Lookups,
    table: int,
    positions: NDArray[np.int32],
    grad_features: NDArray[np.float32],
    result: NDArray[np.float32],
) -> None:
    num_features, dim = grad_features.shape[1], grad_features.shape[2]
    for k in range(0, dim, LANES):
        summed = splat(np.float32(-0.0))  # the one that changes nothing, not even -0
        for position in positions:
            sample = sample_of(lookups, table, position)
            g = load_part(grad_features, (sample * num_features + 1 + table) * dim + k, dim - k)
            if lookups.mean:
                g = divide(g, splat(np.float32(bag_length(lookups, table, sample))))
            summed = add(summed, g)
        store_part(result, k, summed, dim - k)
