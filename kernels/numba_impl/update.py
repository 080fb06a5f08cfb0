"""The fused update: from the pooled gradient straight to the tables, equal rows summed first.

Work is cut into (table, shard of rows) whose number depends on the batch only, and claimed by whichever thread is free:
every row belongs to one item, so the result is the same for any number of threads.
"""

from typing import NamedTuple

import numpy as np
from numba import prange
from numpy.typing import NDArray

from .atomic import claim
from .bounds import BLOCK_SHIFT, Bounds, Sighting, Sightings, note_row, settle_table
from .chains import Chains, chain_shard
from .compiled import parallel, serial
from .gather import prefetch_row
from .lookups import Lookups, bag_length, sample_of
from .rule import Rule, step_row
from .vector import LANES, add, address, divide, load_part, prefetch, splat, store

_AHEAD = 16
_ENTRIES_PER_ITEM = 512


class Scratch(NamedTuple):
    """Working memory of the update, one row per thread; `allocate_scratch` sizes it."""

    position: NDArray[np.int32]
    following: NDArray[np.int32]
    head: NDArray[np.int32]
    row: NDArray[np.int32]
    slot: NDArray[np.int32]
    gradient: NDArray[np.float32]
    counter: NDArray[np.int64]  # [1], the next item to claim
    best: NDArray[np.int32]  # one per item, as the two below
    best_row: NDArray[np.int64]
    shrunk: NDArray[np.bool_]


def allocate_scratch(threads: int, lookups_per_table: int, dim: int, num_items: int) -> Scratch:
    """Room for tables with up to that many lookups, and that many items."""
    length = max(lookups_per_table, 1)
    position, following, head, row = (np.empty((threads, length), np.int32) for _ in range(4))
    slots = np.empty((threads, 1 << max(2 * length - 1, 2).bit_length()), np.int32)
    gradient = np.zeros((threads, (dim + LANES - 1) // LANES * LANES), np.float32)
    items = max(num_items, 1)
    return Scratch(
        position,
        following,
        head,
        row,
        slots,
        gradient,
        np.zeros(1, np.int64),
        np.zeros(items, np.int32),
        np.zeros(items, np.int64),
        np.zeros(items, np.bool_),
    )


@parallel
def update(
    weight: NDArray[np.float32],
    first_row: NDArray[np.int64],
    lookups: Lookups,
    grad_features: NDArray[np.float32],
    rule: Rule,
    bounds: Bounds,
    scratch: Scratch,
    shard_bits: int,
) -> None:
    """grad_features [B, F, D]; slots 1 and up belong to the tables."""
    counter = scratch.counter
    counter[0] = 0
    for worker in prange(scratch.position.shape[0]):
        _work(weight, first_row, lookups, grad_features, rule, bounds, scratch, shard_bits, worker)
    if bounds.top.size:
        sightings = Sightings(scratch.best, scratch.best_row, scratch.shrunk)
        for table in range(first_row.size - 1):
            settle_table(weight, first_row, bounds, table, sightings, table << shard_bits, (table + 1) << shard_bits)


@serial
def _work(
    weight: NDArray[np.float32],
    first_row: NDArray[np.int64],
    lookups: Lookups,
    grad_features: NDArray[np.float32],
    rule: Rule,
    bounds: Bounds,
    scratch: Scratch,
    shard_bits: int,
    worker: int,
) -> None:
    """What one thread does: items until none is left."""
    chains = Chains(
        scratch.position[worker],
        scratch.following[worker],
        scratch.head[worker],
        scratch.row[worker],
        scratch.slot[worker],
    )
    shards = 1 << shard_bits
    item = claim(scratch.counter)
    while item < (first_row.size - 1) * shards:
        table, shard = item >> shard_bits, item & (shards - 1)
        start, end = lookups.table_start[table], lookups.table_start[table + 1]
        num_rows = first_row[table + 1] - first_row[table]
        num_unique = chain_shard(lookups.ids, start, end, shard, shard_bits, num_rows, chains)
        sighting = _update_chains(
            weight,
            first_row[table],
            table,
            lookups,
            grad_features,
            rule,
            bounds,
            chains,
            num_unique,
            scratch.gradient[worker],
        )
        scratch.best[item], scratch.best_row[item] = sighting.best, sighting.best_row
        scratch.shrunk[item] = sighting.shrunk
        item = claim(scratch.counter)


@serial
def _gradient_index(lookups: Lookups, table: int, position: int, num_features: int, dim: int) -> int:
    """Where the gradient of ids[position] starts in grad_features."""
    return (sample_of(lookups, table, position) * num_features + 1 + table) * dim


@serial
def _update_chains(
    weight: NDArray[np.float32],
    first_row: int,
    table: int,
    lookups: Lookups,
    grad_features: NDArray[np.float32],
    rule: Rule,
    bounds: Bounds,
    chains: Chains,
    num_unique: int,
    buffer: NDArray[np.float32],
) -> Sighting:
    """Updates every unique row once."""
    num_features, dim = grad_features.shape[1], grad_features.shape[2]
    sighting = Sighting(np.int32(-1), np.int64(0), False)
    for u in range(num_unique):
        if u + _AHEAD < num_unique:
            ahead = np.int64(chains.row[u + _AHEAD])
            prefetch_row(weight, first_row + ahead)
            position = chains.position[chains.head[u + _AHEAD]]
            prefetch(grad_features, _gradient_index(lookups, table, position, num_features, dim))
            if bounds.top.size:
                prefetch(bounds.block, bounds.block_start[table] + (ahead >> BLOCK_SHIFT))
            if rule.accumulator.size:
                prefetch(rule.accumulator, first_row + ahead)
        row, lookup = np.int64(chains.row[u]), chains.head[u]
        if chains.following[lookup] < 0 and not lookups.mean:
            index = _gradient_index(lookups, table, chains.position[lookup], num_features, dim)
            gradient = address(grad_features, index)
        else:
            _sum_chain(lookups, table, grad_features, chains, lookup, buffer)
            gradient = address(buffer, 0)
        words = step_row(rule, weight, first_row + row, gradient)
        if bounds.top.size:
            sighting = note_row(bounds, table, row, words, sighting)
    return sighting


@serial
def _sum_chain(
    lookups: Lookups,
    table: int,
    grad_features: NDArray[np.float32],
    chains: Chains,
    first_lookup: int,
    buffer: NDArray[np.float32],
) -> None:
    """buffer = the sum of the gradients of a chain, in the order of the samples."""
    num_features, dim = grad_features.shape[1], grad_features.shape[2]
    for k in range(0, dim, LANES):
        summed = splat(np.float32(-0.0))  # the one that changes nothing, not even -0
        lookup = first_lookup
        while lookup >= 0:
            sample = sample_of(lookups, table, chains.position[lookup])
            g = load_part(grad_features, (sample * num_features + 1 + table) * dim + k, dim - k)
            if lookups.mean:
                g = divide(g, splat(np.float32(bag_length(lookups, table, sample))))
            summed = add(summed, g)
            lookup = chains.following[lookup]
        store(buffer, k, summed)


@parallel
def apply_sparse(
    weight: NDArray[np.float32],
    first_row: NDArray[np.int64],
    table_ptr: NDArray[np.int64],
    rows: NDArray[np.int32],
    values: NDArray[np.float32],
    rule: Rule,
    bounds: Bounds,
) -> None:
    """Updates with a gradient whose rows are unique and sorted within their table."""
    num_tables = first_row.size - 1
    first_item = np.zeros(num_tables + 1, np.int64)
    for t in range(num_tables):
        entries = table_ptr[t + 1] - table_ptr[t]
        first_item[t + 1] = first_item[t] + (entries + _ENTRIES_PER_ITEM - 1) // _ENTRIES_PER_ITEM
    num_items = first_item[num_tables]
    best, best_row = np.empty(num_items, np.int32), np.empty(num_items, np.int64)
    shrunk = np.empty(num_items, np.bool_)
    for item in prange(num_items):
        table = np.searchsorted(first_item, item, side="right") - 1
        start = table_ptr[table] + (item - first_item[table]) * _ENTRIES_PER_ITEM
        end = _block_end(rows, start + _ENTRIES_PER_ITEM, table_ptr[table], table_ptr[table + 1])
        start = _block_end(rows, start, table_ptr[table], table_ptr[table + 1])
        sighting = _apply_run(weight, first_row[table], table, rows, values, start, end, rule, bounds)
        best[item], best_row[item], shrunk[item] = sighting.best, sighting.best_row, sighting.shrunk
    if bounds.top.size:
        sightings = Sightings(best, best_row, shrunk)
        for table in range(num_tables):
            settle_table(weight, first_row, bounds, table, sightings, first_item[table], first_item[table + 1])


@serial
def _apply_run(
    weight: NDArray[np.float32],
    first_row: int,
    table: int,
    rows: NDArray[np.int32],
    values: NDArray[np.float32],
    start: int,
    end: int,
    rule: Rule,
    bounds: Bounds,
) -> Sighting:
    """Entries start to end of one table."""
    sighting = Sighting(np.int32(-1), np.int64(0), False)
    for i in range(start, end):
        if i + _AHEAD < end:
            prefetch_row(weight, first_row + rows[i + _AHEAD])
        words = step_row(rule, weight, first_row + rows[i], address(values, i * weight.shape[1]))
        if bounds.top.size:
            sighting = note_row(bounds, table, np.int64(rows[i]), words, sighting)
    return sighting


@serial
def _block_end(rows: NDArray[np.int32], entry: int, first: int, last: int) -> int:
    """The first entry from `entry` on that starts a block of bounds: no block is cut, so no two threads share one."""
    if entry >= last:
        return last
    while entry > first and entry < last and rows[entry] >> BLOCK_SHIFT == rows[entry - 1] >> BLOCK_SHIFT:
        entry += 1
    return entry
