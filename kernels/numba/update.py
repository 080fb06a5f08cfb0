"""The update of the tables: from the pooled gradient at once, equal rows summed first, or from a sparse gradient.

The fused update cuts its work into (table, shard of rows) whose number depends on the batch only, claimed by whichever
thread is free: every row belongs to one item, so the result is the same for any number of threads. A table of few rows
is one item (see `duplicate_rows`).
"""

from typing import Any, NamedTuple

import numpy as np

from ..jit.arena import FP32_ROWS, Arena, prefetch_stored
from ..jit.compile import inlined, kernel, serial
from ..jit.memory import arrive, claim, float_at, int_at, long_at, prefetch, set_float, set_int, set_long
from ..jit.simd import LANES, add, load_part, multiply, multiply_add, splat, store, store_part, subtract, total
from ..jit.simd_integers import larger, magnitude, no_words
from ..jit.threads import on_all_threads
from .absmax_tracker import BLOCK_SHIFT, SIGHTING_LONGS, Bounds, clear_sighting, note_row, settle_table
from .duplicate_rows import CHAIN_LISTS, DENSE_SUMS, Chains, chain_shard, chains_at, row_stride, sum_dense, sums_fit
from .lookups import Lookups, Pooled, divisor, gradient_part, pooled_element
from .stored_rows import Chances, load_row, row_key, store_row

SUM_WIDTH = 4 * LANES
"""Floats of a chain's sum that are added up in one walk along it."""

ENTRIES_PER_ITEM = 512
_AHEAD = 16


class Rule(NamedTuple):
    """`UpdateRule` as the kernels read it."""

    lr: np.float32
    weight_decay: np.float32
    eps: np.float32
    accumulator: int  # address of f32[R]; 0: SGD
    chances: Chances
    interval_decay: np.float32
    last: int  # address of int32[R]; 0: rows do not shrink by the iterations since their last update
    iteration: int


@inlined
def _decayed(gradient: int, weight: int, k: int, count: int, weight_decay: np.float32) -> Any:
    """Returns g + weight_decay w of one vector."""
    g = load_part(gradient, k, count)
    if weight_decay != np.float32(0):
        g = add(g, multiply(splat(weight_decay), load_part(weight, k, count)))
    return g


@inlined
def _rate(rule: Rule, gradient: int, weight: int, arena_row: int, dim: int) -> Any:
    """Returns the row's learning rate, after its accumulator has grown."""
    if rule.accumulator == 0:
        return rule.lr
    squares = splat(np.float32(0))
    for k in range(0, dim, LANES):
        g = _decayed(gradient, weight, k, dim - k, rule.weight_decay)
        squares = multiply_add(g, g, squares)
    summed = float_at(rule.accumulator, arena_row) + total(squares) / np.float32(dim)
    set_float(rule.accumulator, arena_row, summed)
    return rule.lr / (np.sqrt(summed) + rule.eps)


@inlined
def _kept(rule: Rule, arena_row: int) -> Any:
    """Returns what a row is multiplied by for the iterations since its last update, which is now."""
    lapsed = np.float32(rule.iteration - int_at(rule.last, arena_row))
    set_int(rule.last, arena_row, rule.iteration)
    return np.float32(1) - min(rule.interval_decay * lapsed, np.float32(1))


@inlined
def _step_values(rule: Rule, place: int, arena_row: int, dim: int, gradient: int) -> Any:
    """Updates the values of a row, f32[D] at an address, with the gradient at another; returns their magnitudes."""
    rate = splat(_rate(rule, gradient, place, arena_row, dim))
    kept = splat(_kept(rule, arena_row) if rule.last else np.float32(1))
    words = no_words()
    for k in range(0, dim, LANES):
        g = _decayed(gradient, place, k, dim - k, rule.weight_decay)
        w = load_part(place, k, dim - k)
        if rule.last:
            w = multiply(kept, w)
        # Product and difference are rounded apart, as in the other implementations.
        w = subtract(w, multiply(rate, g))
        store_part(place, k, w, dim - k)
        words = larger(words, magnitude(w))
    return words


@inlined
def step_row(rule: Rule, arena: Arena, table: int, row: int, gradient: int, values: int) -> Any:
    """Updates a row with the gradient at an address; returns the magnitudes of the new row, folded into one vector.

    values: room for f32[D], used where rows are not FP32.
    """
    arena_row = long_at(arena.first_row, table) + row
    if arena.form == FP32_ROWS:
        return _step_values(rule, arena.weight + 4 * arena_row * arena.dim, arena_row, arena.dim, gradient)
    return _step_stored(rule, arena, arena_row, gradient, values, row_key(rule.chances, table, row))


@serial
def _step_stored(rule: Rule, arena: Arena, arena_row: int, gradient: int, values: int, key: np.uint64) -> Any:
    """Does what `step_row` does with rows of fewer bits."""
    load_row(arena, arena_row, values)
    words = _step_values(rule, values, arena_row, arena.dim, gradient)
    return store_row(arena, arena_row, values, words, key)


class UpdateScratch(NamedTuple):
    """Addresses of working memory; the int32 and f32 parts have one stretch per thread."""

    chains: int  # int32[threads, CHAIN_LISTS length + slots]
    length: int
    slots: int
    gradient: int  # f32[threads, 2, D rounded up to SUM_WIDTH]: of a row, and its values
    sums: int  # f32[threads, DENSE_SUMS]
    claims: int  # int64[items], how many threads wanted an item
    done: int  # int64[T], how many items of a table are done
    sightings: int  # int64[items, SIGHTING_LONGS]
    threads: int


@kernel
def update(
    arena: Arena,
    lookups: Lookups,
    pooled: Pooled,
    rule: Rule,
    bounds: Bounds,
    scratch: UpdateScratch,
    shard_bits: int,
) -> None:
    """Brings the tables, and the bounds if there are any, up to date."""
    for item in range(arena.num_tables << shard_bits):
        set_long(scratch.claims, item, 0)
    for table in range(arena.num_tables):
        set_long(scratch.done, table, 0)
    on_all_threads(scratch.threads, _work, (arena, lookups, pooled, rule, bounds, scratch, shard_bits))


@serial
def _work(
    arena: Arena,
    lookups: Lookups,
    pooled: Pooled,
    rule: Rule,
    bounds: Bounds,
    scratch: UpdateScratch,
    shard_bits: int,
    worker: int,
) -> None:
    """Does one thread's work: items until none is left.

    Each begins elsewhere, at the same place in every step: what it wrote last time may still be in its cache.
    """
    chains = chains_at(scratch.chains + 4 * worker * (CHAIN_LISTS * scratch.length + scratch.slots), scratch.length)
    padded = (arena.dim + SUM_WIDTH - 1) // SUM_WIDTH * SUM_WIDTH
    buffer = scratch.gradient + 4 * worker * 2 * padded
    values = buffer + 4 * padded
    num_items = arena.num_tables << shard_bits
    first = num_items * worker // scratch.threads
    for i in range(first, first + num_items):
        item = i if i < num_items else i - num_items
        if claim(scratch.claims + 8 * item) != 0:
            continue
        table, shard = item >> shard_bits, item & ((1 << shard_bits) - 1)
        sighting = scratch.sightings + 8 * SIGHTING_LONGS * item
        clear_sighting(sighting)
        if not sums_fit(arena, lookups, table):
            num_single, num_first = chain_shard(arena, lookups, table, pooled, shard, shard_bits, chains)
            work = (arena, table, lookups, pooled, rule, bounds, chains)
            _update_rows(*work, chains.single, num_single, buffer, values, sighting)
            _update_rows(*work, chains.first, num_first, buffer, values, sighting)
        elif shard == 0:
            sums = scratch.sums + 4 * worker * DENSE_SUMS
            sum_dense(arena, table, lookups, pooled, chains.following, sums)
            _update_dense(arena, table, rule, bounds, chains.following, sums, values, sighting)
        # Whoever does the last item of a table knows what all of them saw.
        if bounds.top and arrive(scratch.done + 8 * table) == (1 << shard_bits) - 1:
            first_of_table = table << shard_bits
            settle_table(arena, bounds, table, scratch.sightings, first_of_table, first_of_table + (1 << shard_bits))


@serial
def _update_rows(
    arena: Arena,
    table: int,
    lookups: Lookups,
    pooled: Pooled,
    rule: Rule,
    bounds: Bounds,
    chains: Chains,
    heads: int,
    num_heads: int,
    buffer: int,
    values: int,
    sighting: int,
) -> None:
    """Updates the row of each of the lookups `heads`, which are all single or all the first of several."""
    summed = heads == chains.first or lookups.mean or pooled.is_bf16
    for u in range(num_heads):
        if u + _AHEAD < num_heads:
            _prefetch_state(arena, table, rule, bounds, int_at(chains.row, int_at(heads, u + _AHEAD)))
        lookup = int_at(heads, u)
        row = int_at(chains.row, lookup)
        if summed:
            _sum_chain(arena, table, lookups, pooled, chains, lookup, buffer)
            gradient = buffer
        else:
            gradient = pooled.place + 4 * pooled_element(arena, lookups, table, int_at(chains.position, lookup))
        words = step_row(rule, arena, table, row, gradient, values)
        if bounds.top:
            note_row(bounds, table, row, words, sighting)


@serial
def _update_dense(
    arena: Arena, table: int, rule: Rule, bounds: Bounds, seen: int, sums: int, values: int, sighting: int
) -> None:
    """Updates the rows that were seen, each with its sum."""
    first_row, end_row = long_at(arena.first_row, table), long_at(arena.first_row, table + 1)
    for row in range(end_row - first_row):
        if int_at(seen, row):
            gradient = sums + 4 * row * row_stride(arena.dim)
            words = step_row(rule, arena, table, row, gradient, values)
            if bounds.top:
                note_row(bounds, table, row, words, sighting)


@inlined
def _prefetch_state(arena: Arena, table: int, rule: Rule, bounds: Bounds, row: int) -> None:
    """Asks for all that an update of a row reads."""
    arena_row = long_at(arena.first_row, table) + row
    prefetch_stored(arena, arena_row)
    if bounds.top:
        prefetch(bounds.block, long_at(bounds.block_start, table) + (row >> BLOCK_SHIFT))
    if rule.accumulator:
        prefetch(rule.accumulator, arena_row)
    if rule.last:
        prefetch(rule.last, arena_row)


@serial
def _sum_chain(
    arena: Arena, table: int, lookups: Lookups, pooled: Pooled, chains: Chains, first_lookup: int, buffer: int
) -> None:
    """Writes to `buffer` the sum of the gradients of a chain, in the order of the samples."""
    for k in range(0, arena.dim, SUM_WIDTH):
        count = arena.dim - k
        nothing = splat(np.float32(-0.0))  # the one that changes nothing, not even -0
        s0, s1, s2, s3 = nothing, nothing, nothing, nothing
        lookup = first_lookup
        while lookup >= 0:
            position = int_at(chains.position, lookup)
            at = pooled_element(arena, lookups, table, position) + k
            length = divisor(lookups, table, position)
            s0 = add(s0, gradient_part(pooled, at, count, length))
            if count > LANES:
                s1 = add(s1, gradient_part(pooled, at + LANES, count - LANES, length))
                s2 = add(s2, gradient_part(pooled, at + 2 * LANES, count - 2 * LANES, length))
                s3 = add(s3, gradient_part(pooled, at + 3 * LANES, count - 3 * LANES, length))
            lookup = int_at(chains.following, lookup)
        store(buffer, k, s0)
        store(buffer, k + LANES, s1)
        store(buffer, k + 2 * LANES, s2)
        store(buffer, k + 3 * LANES, s3)


class Entries(NamedTuple):
    """Addresses of a sparse gradient, and how it is cut into items."""

    table_ptr: int  # int64[T + 1]
    rows: int  # int32[N]
    values: int  # f32[N, D]
    first_item: int  # int64[T + 1]
    sightings: int  # int64[items, SIGHTING_LONGS]
    room: int  # f32[items, D], where rows are not FP32


@kernel
def update_sparse(arena: Arena, entries: Entries, rule: Rule, bounds: Bounds) -> None:
    """Updates tables and bounds with a sparse gradient; one item: ENTRIES_PER_ITEM rows of one table."""
    on_all_threads(long_at(entries.first_item, arena.num_tables), _update_entries, (arena, entries, rule, bounds))
    if bounds.top:
        for table in range(arena.num_tables):
            first, last = long_at(entries.first_item, table), long_at(entries.first_item, table + 1)
            settle_table(arena, bounds, table, entries.sightings, first, last)


@serial
def _update_entries(arena: Arena, entries: Entries, rule: Rule, bounds: Bounds, item: int) -> None:
    table, dim = 0, arena.dim
    while long_at(entries.first_item, table + 1) <= item:
        table += 1
    first, last = long_at(entries.table_ptr, table), long_at(entries.table_ptr, table + 1)
    start = first + (item - long_at(entries.first_item, table)) * ENTRIES_PER_ITEM
    end = _next_block(entries.rows, start + ENTRIES_PER_ITEM, first, last)
    start = _next_block(entries.rows, start, first, last)
    sighting = entries.sightings + 8 * SIGHTING_LONGS * item
    clear_sighting(sighting)
    first_row = long_at(arena.first_row, table)
    for i in range(start, end):
        if i + _AHEAD < end:
            prefetch_stored(arena, first_row + int_at(entries.rows, i + _AHEAD))
        row = int_at(entries.rows, i)
        words = step_row(rule, arena, table, row, entries.values + 4 * i * dim, entries.room + 4 * item * dim)
        if bounds.top:
            note_row(bounds, table, row, words, sighting)


@inlined
def _next_block(rows: int, entry: int, first: int, last: int) -> int:
    """Finds the first entry from `entry` on that starts a block of bounds: none is cut, so no two threads share one."""
    if entry >= last:
        return last
    while (
        entry > first and entry < last and int_at(rows, entry) >> BLOCK_SHIFT == int_at(rows, entry - 1) >> BLOCK_SHIFT
    ):
        entry += 1
    return entry
