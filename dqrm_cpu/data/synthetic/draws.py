"""Numbers from hashes: every draw of row i is a hash of (seed, i, what it is for), so any row can be made alone."""

import numpy as np

from dqrm_cpu.data.synthetic.compiled import compiled
from dqrm_cpu.data.synthetic.quantiles import CELLS, FINE_CELLS
from dqrm_cpu.data.synthetic.world import Floats, StreamKeys

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_LOW_16 = np.uint64(0xFFFF)
_UNIT = 2.0**-53
LARGEST_SHARE = 1.0 - _UNIT


@compiled
def mix(value: np.uint64) -> np.uint64:
    """The finalizer of splitmix64."""
    value = (value ^ (value >> np.uint64(30))) * _MIX_1
    value = (value ^ (value >> np.uint64(27))) * _MIX_2
    return value ^ (value >> np.uint64(31))


@compiled
def row_key(keys: StreamKeys, place: int) -> np.uint64:
    """What all draws of the row at start + place are hashed with."""
    return mix(keys.seed + np.uint64(keys.start + place) * _GOLDEN)


@compiled
def uniform(key: np.uint64, draw: np.uint64) -> float:
    """Draw number `draw` of a row, in [0, 1)."""
    return float(mix(key + draw * _GOLDEN) >> np.uint64(11)) * _UNIT


@compiled
def hashed_normal(world: np.uint64, rank: int) -> float:
    """Nearly standard normal: four 16-bit uniforms of one hash, summed; within +-3.46."""
    bits = mix(world + np.uint64(rank) * _GOLDEN)
    total = (bits & _LOW_16) + ((bits >> np.uint64(16)) & _LOW_16)
    total += ((bits >> np.uint64(32)) & _LOW_16) + (bits >> np.uint64(48))
    return (float(total) / 65535.0 - 2.0) * 1.7320508


@compiled
def hashed_product(world_a: np.uint64, rank_a: int, world_b: np.uint64, rank_b: int) -> float:
    """Product of two hashed vectors of four elements, of variance 1."""
    a = mix(world_a + np.uint64(0x51) + np.uint64(rank_a) * _GOLDEN)
    b = mix(world_b + np.uint64(0x51) + np.uint64(rank_b) * _GOLDEN)
    total = 0.0
    for k in range(4):
        shift = np.uint64(16 * k)
        total += (float((a >> shift) & _LOW_16) / 65535.0 - 0.5) * (float((b >> shift) & _LOW_16) / 65535.0 - 0.5)
    return total * 6.0


@compiled
def read_quantile(quantiles: Floats, t: int, share: float) -> float:
    """The value below which `share` of the cells of field t lie."""
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


@compiled
def find_share(quantiles: Floats, h: int, value: float) -> float:
    """The inverse of read_quantile for hidden id h."""
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


@compiled
def blend(own: float, activity: float, weight: float) -> float:
    """A uniform number that leans on `activity`: the distribution function of (1 - |w|) own + |w| activity."""
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
