"""The compiled generator of raw rows: ranks of categories, integers and clicks.

Every draw of row i is a hash of (seed, i, what it is for), so any row can be made alone.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.data.synthetic.click_model import PAIR_RANK_LIMIT
from dqrm_cpu.data.synthetic.world import CELLS, FINE_CELLS, Floats, RawArrays, Records, StreamKeys, World
from dqrm_cpu.kernels.jit.compile import compiled, compiled_part
from dqrm_cpu.kernels.jit.hashing import splitmix64
from dqrm_cpu.kernels.jit.threads import on_all_threads

MISSING = np.int32(-(2**31))
"""A missing integer in a raw row; a missing category is rank -1."""

ROWS_PER_CHUNK = 32  # small, so that a batch of 128 still keeps several threads busy
LABEL_DRAW = np.uint64(1)
ACTIVITY_DRAW = np.uint64(2)
FOLLOW_DRAW = np.uint64(1)  # after a table's own draw: whether it follows its hidden id

_LOW_16 = np.uint64(0xFFFF)
_UNIT = 2.0**-53
LARGEST_SHARE = 1.0 - _UNIT


@compiled_part
def row_key(keys: StreamKeys, place: int) -> np.uint64:
    """Returns what all draws of the row at start + place are hashed with."""
    key: np.uint64 = splitmix64(keys.seed, keys.start + place)
    return key


@compiled_part
def uniform(key: np.uint64, draw: np.uint64) -> float:
    """Returns draw number `draw` of a row, in [0, 1)."""
    return float(splitmix64(key, draw) >> np.uint64(11)) * _UNIT


@compiled_part
def hashed_normal(world: np.uint64, rank: int) -> float:
    """Returns a nearly standard normal number: four 16-bit uniforms of one hash, summed; within +-3.46."""
    bits = splitmix64(world, rank)
    total = (bits & _LOW_16) + ((bits >> np.uint64(16)) & _LOW_16)
    total += ((bits >> np.uint64(32)) & _LOW_16) + (bits >> np.uint64(48))
    return (float(total) / 65535.0 - 2.0) * 1.7320508


@compiled_part
def hashed_product(world_a: np.uint64, rank_a: int, world_b: np.uint64, rank_b: int) -> float:
    """Returns the product of two hashed vectors of four elements, of variance 1."""
    a = splitmix64(world_a + np.uint64(0x51), rank_a)
    b = splitmix64(world_b + np.uint64(0x51), rank_b)
    total = 0.0
    for k in range(4):
        shift = np.uint64(16 * k)
        total += (float((a >> shift) & _LOW_16) / 65535.0 - 0.5) * (float((b >> shift) & _LOW_16) / 65535.0 - 0.5)
    return total * 6.0


@compiled_part
def read_quantile(quantiles: Floats, t: int, share: float) -> float:
    """Returns the value below which `share` of the cells of field t lie."""
    place = share * CELLS
    cell = int(place)
    if cell == CELLS - 1:
        place = (place - cell) * FINE_CELLS
        cell = int(place)
        place -= cell
        cell += CELLS + 1
    else:
        place -= cell
    low = float(quantiles[t, cell])
    return low + place * (float(quantiles[t, cell + 1]) - low)


@compiled_part
def find_share(quantiles: Floats, h: int, value: float) -> float:
    """Inverts read_quantile for hidden id h."""
    fine = value >= quantiles[h, CELLS - 1]
    low, high = (CELLS + 1, CELLS + 1 + FINE_CELLS) if fine else (0, CELLS)
    first = low
    while high - low > 1:
        middle = (low + high) // 2
        if quantiles[h, middle] <= value:
            low = middle
        else:
            high = middle
    below, above = float(quantiles[h, low]), float(quantiles[h, low + 1])
    place = low - first + (value - below) / (above - below)
    share = (CELLS - 1 + place / FINE_CELLS) / CELLS if fine else place / CELLS
    return min(share, LARGEST_SHARE)


@compiled_part
def blend(own: float, activity: float, weight: float) -> float:
    """Returns a uniform number that leans on `activity`: the distribution function of (1 - |w|) own + |w| activity."""
    if weight == 0.0:
        return own
    if weight < 0.0:
        activity, weight = 1.0 - activity, -weight
    total = (1.0 - weight) * own + weight * activity
    short = min(weight, 1.0 - weight)
    area = 2.0 * short * (1.0 - short)
    if total < short:
        return total * total / area
    if total > 1.0 - short:
        return 1.0 - (1.0 - total) * (1.0 - total) / area
    return (total - 0.5 * short) / (1.0 - short)


@compiled_part
def draw_share(draw: np.uint64, quantiles: Floats, h: int, key: np.uint64) -> float:
    """Returns the share in the middle of the hidden id of a row: the same number whenever the same id comes back."""
    rank = np.floor(read_quantile(quantiles, h, uniform(key, draw)))
    return find_share(quantiles, h, rank + 0.5)


@compiled_part
def draw_rank(field: Any, quantiles: Floats, t: int, key: np.uint64, shares: NDArray[np.float64]) -> int:
    """Returns the rank of field t in the row of `key`, -1 where it is missing."""
    if field.missing_share > 0.0 and uniform(key, field.missing_draw) < field.missing_share:
        return -1
    if field.hidden_share > 0.0 and (
        field.hidden_share >= 1.0 or uniform(key, field.own_draw + FOLLOW_DRAW) < field.hidden_share
    ):
        return int(read_quantile(quantiles, t, shares[field.hidden]))
    return int(read_quantile(quantiles, t, uniform(key, field.own_draw)))


@compiled_part
def category_effect(field: Any, head_effects: Floats, t: int, rank: int) -> float:
    """Returns what a value adds to the log odds."""
    if rank < field.num_heads:
        return float(head_effects[t, rank + 1])
    spread = float(field.common_spread) if rank < field.num_common else float(field.spread)
    if spread == 0.0 or rank < 0:
        return 0.0
    return spread * hashed_normal(field.world, rank)


@compiled_part
def pair_effect(pair: Any, categories: Records, ranks: NDArray[np.int32]) -> float:
    """Returns what the product of two values adds to the log odds."""
    a, b = ranks[pair.first], ranks[pair.second]
    if not (0 <= a < PAIR_RANK_LIMIT and 0 <= b < PAIR_RANK_LIMIT):
        return 0.0
    return float(pair.spread) * hashed_product(categories[pair.first].world, a, categories[pair.second].world, b)


@compiled_part
def integer_effect(field: Any, share: float) -> float:
    """Returns what the value at a share of the field's distribution adds to the log odds."""
    low = max(0.0, 1.0 - 2.0 * share)
    return float(field.slope) * (share - 0.5) + float(field.spike) * low * low * low


@compiled_part
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


@compiled_part
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


@compiled_part
def draw_chunk(keys: StreamKeys, world: World, out: RawArrays, chunk: int) -> None:
    """Draws the rows of one chunk of out."""
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
    """Draws the rows from keys.start on, as raw values."""
    num_chunks = (out.label.shape[0] + ROWS_PER_CHUNK - 1) // ROWS_PER_CHUNK
    on_all_threads(num_chunks, draw_chunk, (keys, world, out))
