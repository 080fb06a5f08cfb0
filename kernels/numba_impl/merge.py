"""Merges the sparse gradients of several ranks: a k-way merge per table, equal rows summed in the ranks' order."""

from typing import NamedTuple

import numpy as np
from numba import prange
from numpy.typing import NDArray

from .compiled import parallel, serial
from .vector import LANES, add, load_part, prefetch, splat, store_part

PARTS = 8
"""Pieces of a large table, cut by row, so that one table keeps several threads busy."""

_LARGE = 8192


class RankGrads(NamedTuple):
    """The sparse gradients of K ranks."""

    rows: NDArray[np.int32]  # of all ranks, one after the other
    pointer: NDArray[np.int64]  # [K, T + 1], into rows
    values: NDArray[np.int64]  # [K], addresses of f32[N_k, D]


@serial
def _lower_bound(rows: NDArray[np.int32], start: int, end: int, row: int) -> int:
    while start < end:
        middle = (start + end) // 2
        if rows[middle] < row:
            start = middle + 1
        else:
            end = middle
    return start


@serial
def _cut(grads: RankGrads, table: int, part: int, place: NDArray[np.int64]) -> None:
    """place [K]: where each rank's rows of a part begin. Cuts are quantiles of the rank with the most rows."""
    most, total = 0, 0
    for k in range(place.size):
        size = grads.pointer[k, table + 1] - grads.pointer[k, table]
        total += size
        if size > grads.pointer[most, table + 1] - grads.pointer[most, table]:
            most = k
    first, last = grads.pointer[most, table], grads.pointer[most, table + 1]
    for k in range(place.size):
        place[k] = grads.pointer[k, table + 1] if part > 0 else grads.pointer[k, table]
    if total >= _LARGE and 0 < part < PARTS:
        row = grads.rows[first + (last - first) * part // PARTS]
        for k in range(place.size):
            place[k] = _lower_bound(grads.rows, grads.pointer[k, table], grads.pointer[k, table + 1], row)


@serial
def _next_row(rows: NDArray[np.int32], at: NDArray[np.int64], end: NDArray[np.int64]) -> int:
    """The smallest row that some rank has next, or -1."""
    row = np.int64(-1)
    for k in range(at.size):
        if at[k] < end[k] and (row < 0 or rows[at[k]] < row):
            row = np.int64(rows[at[k]])
    return row


@parallel
def count_merged(grads: RankGrads, count: NDArray[np.int64]) -> None:
    """count [T * PARTS]: unique rows of each part."""
    num_ranks = grads.pointer.shape[0]
    for item in prange(count.size):
        table, part = item // PARTS, item % PARTS
        at, end = np.empty(num_ranks, np.int64), np.empty(num_ranks, np.int64)
        _cut(grads, table, part, at)
        _cut(grads, table, part + 1, end)
        count[item] = 0
        row = _next_row(grads.rows, at, end)
        while row >= 0:
            count[item] += 1
            for k in range(num_ranks):
                if at[k] < end[k] and grads.rows[at[k]] == row:
                    at[k] += 1
            row = _next_row(grads.rows, at, end)


@parallel
def write_merged(
    grads: RankGrads, first_entry: NDArray[np.int64], rows: NDArray[np.int32], values: NDArray[np.float32]
) -> None:
    """first_entry [T * PARTS + 1]: where the result of each part begins."""
    num_ranks, dim = grads.pointer.shape[0], values.shape[1]
    for item in prange(first_entry.size - 1):
        table, part = item // PARTS, item % PARTS
        at, end = np.empty(num_ranks, np.int64), np.empty(num_ranks, np.int64)
        _cut(grads, table, part, at)
        _cut(grads, table, part + 1, end)
        for entry in range(first_entry[item], first_entry[item + 1]):
            row = _next_row(grads.rows, at, end)
            rows[entry] = row
            _sum_ranks(grads, at, end, row, dim, values[entry])


@serial
def _sum_ranks(
    grads: RankGrads, at: NDArray[np.int64], end: NDArray[np.int64], row: int, dim: int, result: NDArray[np.float32]
) -> None:
    """result = the sum over the ranks whose next row is `row`; moves these on."""
    for k in range(0, dim, LANES):
        summed = splat(np.float32(-0.0))  # the one that changes nothing, not even -0
        for rank in range(at.size):
            if at[rank] < end[rank] and grads.rows[at[rank]] == row:
                index = (at[rank] - grads.pointer[rank, 0]) * dim + k
                prefetch(grads.values[rank], index + 8 * dim)
                summed = add(summed, load_part(grads.values[rank], index, dim - k))
        store_part(result, k, summed, dim - k)
    for rank in range(at.size):
        if at[rank] < end[rank] and grads.rows[at[rank]] == row:
            at[rank] += 1
