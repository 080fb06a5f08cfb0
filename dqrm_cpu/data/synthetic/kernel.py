"""The compiled generator of raw rows: ranks of categories, integers and clicks."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.data.synthetic.click_model import PAIR_RANK_LIMIT
from dqrm_cpu.data.synthetic.compiled import compiled
from dqrm_cpu.data.synthetic.draws import (
    LARGEST_SHARE,
    blend,
    find_share,
    hashed_normal,
    hashed_product,
    read_quantile,
    row_key,
    uniform,
)
from dqrm_cpu.data.synthetic.world import Floats, RawArrays, Records, StreamKeys, World
from dqrm_cpu.kernels.numba_impl.threads import on_all_threads

MISSING = np.int32(-(2**31))
"""A missing integer in a raw row; a missing category is rank -1."""

ROWS_PER_CHUNK = 32  # small, so that a batch of 128 still keeps several threads busy
LABEL_DRAW = np.uint64(1)
ACTIVITY_DRAW = np.uint64(2)
FOLLOW_DRAW = np.uint64(1)  # after a table's own draw: whether it follows its hidden id,
MISSING_DRAW = np.uint64(2)  # and whether it is missing


@compiled
def draw_share(draw: np.uint64, quantiles: Floats, h: int, key: np.uint64) -> float:
    """The share in the middle of the hidden id of a row: the same number whenever the same id comes back."""
    rank = np.floor(read_quantile(quantiles, h, uniform(key, draw)))
    return find_share(quantiles, h, rank + 0.5)


@compiled
def draw_rank(field: Any, quantiles: Floats, t: int, key: np.uint64, shares: NDArray[np.float64]) -> int:
    """The rank of field t in the row of `key`, -1 where it is missing."""
    if field.missing_share > 0.0 and uniform(key, field.missing_draw) < field.missing_share:
        return -1
    if field.hidden_share > 0.0 and (
        field.hidden_share >= 1.0 or uniform(key, field.own_draw + FOLLOW_DRAW) < field.hidden_share
    ):
        return int(read_quantile(quantiles, t, shares[field.hidden]))
    return int(read_quantile(quantiles, t, uniform(key, field.own_draw)))


@compiled
def category_effect(field: Any, head_effects: Floats, t: int, rank: int) -> float:
    """What a value adds to the log odds."""
    if rank < field.num_heads:
        return float(head_effects[t, rank + 1])
    if field.spread == 0.0 or rank < 0:
        return 0.0
    return float(field.spread) * hashed_normal(field.world, rank)


@compiled
def pair_effect(pair: Any, categories: Records, ranks: NDArray[np.int32]) -> float:
    """What the product of two values adds to the log odds."""
    a, b = ranks[pair.first], ranks[pair.second]
    if not (0 <= a < PAIR_RANK_LIMIT and 0 <= b < PAIR_RANK_LIMIT):
        return 0.0
    return float(pair.spread) * hashed_product(categories[pair.first].world, a, categories[pair.second].world, b)


@compiled
def integer_effect(field: Any, share: float) -> float:
    """What the value at a share of the field's distribution adds to the log odds."""
    low = max(0.0, 1.0 - 2.0 * share)
    return float(field.slope) * (share - 0.5) + float(field.spike) * low * low * low


@compiled
def fill_integers(fields: Records, quantiles: Floats, key: np.uint64, i: int, out: NDArray[np.int32]) -> float:
    """Draws the integers of row i of out; returns what they add to its log odds."""
    activity = uniform(key, ACTIVITY_DRAW)
    log_odds = 0.0
    for d in range(out.shape[1]):
        field = fields[d]
        if uniform(key, field.missing_draw) < field.missing_share:
            out[i, d] = MISSING
            log_odds += float(field.missing_effect)
        else:
            share = min(blend(uniform(key, field.own_draw), activity, field.activity), LARGEST_SHARE)
            out[i, d] = np.int32(np.floor(read_quantile(quantiles, d, share)))
            log_odds += integer_effect(field, share)
    return log_odds


@compiled
def fill_ranks(
    fields: Records,
    quantiles: Floats,
    head_effects: Floats,
    key: np.uint64,
    shares: NDArray[np.float64],
    out: NDArray[np.int32],
) -> float:
    """Draws the categories of one row; returns what they add to its log odds."""
    log_odds = 0.0
    for t in range(out.shape[0]):
        out[t] = draw_rank(fields[t], quantiles, t, key, shares)
        log_odds += category_effect(fields[t], head_effects, t, out[t])
    return log_odds


@compiled
def draw_chunk(keys: StreamKeys, world: World, out: RawArrays, chunk: int) -> None:
    """Places of one chunk of out."""
    ranks = np.empty(out.ranks.shape[0], np.int32)
    shares = np.empty(world.hidden_draws.shape[0])
    categories, pairs = world.categories, world.pairs
    out_ranks, out_log_odds, out_label = out.ranks, out.log_odds, out.label
    for i in range(chunk * ROWS_PER_CHUNK, min(out_label.shape[0], (chunk + 1) * ROWS_PER_CHUNK)):
        key = row_key(keys, i)
        for h in range(shares.shape[0]):
            shares[h] = draw_share(world.hidden_draws[h], world.hidden_quantiles, h, key)
        log_odds = fill_integers(world.integers, world.integer_quantiles, key, i, out.integers)
        log_odds += fill_ranks(categories, world.category_quantiles, world.head_effects, key, shares, ranks)
        for p in range(pairs.shape[0]):
            log_odds += pair_effect(pairs[p], categories, ranks)
        for t in range(ranks.shape[0]):
            out_ranks[t, i] = ranks[t]
        out_log_odds[i] = log_odds
        rate = 1.0 / (1.0 + np.exp(-(log_odds + keys.bias)))
        out_label[i] = 1.0 if uniform(key, LABEL_DRAW) < rate else 0.0


@compiled
def draw_rows(keys: StreamKeys, world: World, out: RawArrays) -> None:
    """The rows from keys.start on, as raw values."""
    num_chunks = (out.label.shape[0] + ROWS_PER_CHUNK - 1) // ROWS_PER_CHUNK
    on_all_threads(num_chunks, draw_chunk, (keys, world, out))
