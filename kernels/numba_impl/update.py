"""The fused update: from the pooled gradient straight to the tables, equal rows summed first.

Work is cut into (table, shard of rows) whose number depends on the batch only, and claimed by whichever thread is free:
every row belongs to one item, so the result is the same for any number of threads.
"""

from typing import NamedTuple

import numpy as np
from numba import prange

from .arena import Arena, prefetch_row
from .bfloat import load_number
from .bounds import BLOCK_SHIFT, SIGHTING_LONGS, Bounds, clear_sighting, note_row, settle_table
from .chains import Chains, chain_shard
from .compiled import parallel, serial
from .lookups import Lookups, Pooled, bag_length, pooled_element, sample_of
from .memory import claim, int_at, long_at
from .rule import Rule, step_row
from .vector import LANES, add, divide, prefetch, splat, store

_AHEAD = 16


class Scratch(NamedTuple):
    """Addresses of working memory; the int32 and f32 parts have one stretch per thread."""

    chains: int  # int32[threads, 4 length + slots]
    length: int
    slots: int
    gradient: int  # f32[threads, D rounded up to LANES]
    counter: int  # int64[1], the next item to claim
    sightings: int  # int64[items, SIGHTING_LONGS]
    threads: int


@parallel
def update(
    arena: Arena,
    lookups: Lookups,
    pooled: Pooled,
    rule: Rule,
    bounds: Bounds,
    scratch: Scratch,
    shard_bits: int,
) -> None:
    """Brings the tables, and the bounds if there are any, up to date."""
    for worker in prange(scratch.threads):
        _work(arena, lookups, pooled, rule, bounds, scratch, shard_bits, worker)
    if bounds.top:
        for table in range(arena.num_tables):
            first = table << shard_bits
            settle_table(arena, bounds, table, scratch.sightings, first, first + (1 << shard_bits))


@serial
def _work(
    arena: Arena,
    lookups: Lookups,
    pooled: Pooled,
    rule: Rule,
    bounds: Bounds,
    scratch: Scratch,
    shard_bits: int,
    worker: int,
) -> None:
    """What one thread does: items until none is left."""
    step = 4 * scratch.length
    base = scratch.chains + worker * (4 * step + 4 * scratch.slots)
    chains = Chains(base, base + step, base + 2 * step, base + 3 * step, base + 4 * step)
    buffer = scratch.gradient + 4 * worker * ((arena.dim + LANES - 1) // LANES * LANES)
    item = claim(scratch.counter)
    while item < arena.num_tables << shard_bits:
        table, shard = item >> shard_bits, item & ((1 << shard_bits) - 1)
        num_unique = chain_shard(arena, lookups, table, pooled, shard, shard_bits, chains)
        sighting = scratch.sightings + 8 * SIGHTING_LONGS * item
        clear_sighting(sighting)
        _update_chains(arena, table, lookups, pooled, rule, bounds, chains, num_unique, buffer, sighting)
        item = claim(scratch.counter)


@serial
def _update_chains(
    arena: Arena,
    table: int,
    lookups: Lookups,
    pooled: Pooled,
    rule: Rule,
    bounds: Bounds,
    chains: Chains,
    num_unique: int,
    buffer: int,
    sighting: int,
) -> None:
    """Updates every unique row once."""
    dim, first_row = arena.dim, long_at(arena.first_row, table)
    for u in range(num_unique):
        if u + _AHEAD < num_unique:
            ahead = int_at(chains.row, u + _AHEAD)
            prefetch_row(arena.weight, first_row + ahead, dim)
            if bounds.top:
                prefetch(bounds.block, long_at(bounds.block_start, table) + (ahead >> BLOCK_SHIFT))
            if rule.accumulator:
                prefetch(rule.accumulator, first_row + ahead)
        row, lookup = int_at(chains.row, u), int_at(chains.head, u)
        gradient = buffer
        if int_at(chains.following, lookup) < 0 and not lookups.mean and not pooled.is_bf16:
            gradient = pooled.place + 4 * pooled_element(arena, lookups, table, int_at(chains.position, lookup))
        else:
            _sum_chain(arena, table, lookups, pooled, chains, lookup, buffer)
        words = step_row(rule, arena.weight, first_row + row, dim, gradient)
        if bounds.top:
            note_row(bounds, table, row, words, sighting)


@serial
def _sum_chain(
    arena: Arena, table: int, lookups: Lookups, pooled: Pooled, chains: Chains, first_lookup: int, buffer: int
) -> None:
    """buffer = the sum of the gradients of a chain, in the order of the samples."""
    for k in range(0, arena.dim, LANES):
        summed = splat(np.float32(-0.0))  # the one that changes nothing, not even -0
        lookup = first_lookup
        while lookup >= 0:
            position = int_at(chains.position, lookup)
            at = pooled_element(arena, lookups, table, position) + k
            g = load_number(pooled.place, at, arena.dim - k, pooled.is_bf16)
            if lookups.mean:
                length = bag_length(lookups, table, sample_of(lookups, table, position))
                g = divide(g, splat(np.float32(length)))
            summed = add(summed, g)
            lookup = int_at(chains.following, lookup)
        store(buffer, k, summed)
