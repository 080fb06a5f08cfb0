"""A batch's ids as the numba kernels read them, one flat list whether one-hot or not, and what was pooled for them."""

from typing import Any, NamedTuple

import numpy as np

from ..jit.arena import Arena, prefetch_row
from ..jit.compile import inlined, kernel, serial
from ..jit.memory import int_at, long_at, set_int
from ..jit.simd import divide, load_number, splat
from ..jit.threads import on_all_threads


class Lookups(NamedTuple):
    """N ids, table by table, sample by sample, as addresses; the caller keeps the arrays alive."""

    ids: int  # int32[N]
    table_start: int  # int64[T + 1], into ids
    samples: int  # int32[N], the sample of each id; 0: one-hot
    offsets: int  # int64[T * B + 1]; 0: one-hot
    batch: int
    mean: int  # 1: gradients are divided by the length of their bag


class Pooled(NamedTuple):
    """The address of what was pooled, or of its gradient."""

    place: int  # address of [B, 1 + T, D]; slots 1 and up belong to the tables
    is_bf16: int  # 0: f32


@kernel
def fill_samples(offsets: int, num_bags: int, batch: int, samples: int) -> None:
    """Writes the sample that each id belongs to."""
    on_all_threads(num_bags, _fill_bag, (offsets, batch, samples))


@serial
def _fill_bag(offsets: int, batch: int, samples: int, bag: int) -> None:
    for i in range(long_at(offsets, bag), long_at(offsets, bag + 1)):
        set_int(samples, i, bag % batch)


@inlined
def sample_of(lookups: Lookups, table: int, position: int) -> int:
    """Returns the sample that looked up id number `position`."""
    if lookups.samples:
        return int(int_at(lookups.samples, position))
    return position - int(long_at(lookups.table_start, table))


@inlined
def pooled_element(arena: Arena, lookups: Lookups, table: int, position: int) -> Any:
    """Returns the first element of what was pooled for id number `position`."""
    return (sample_of(lookups, table, position) * (1 + arena.num_tables) + 1 + table) * arena.dim


@inlined
def prefetch_pooled(pooled: Pooled, element: int, dim: int) -> None:
    """Asks for the cache lines of the gradient that starts at an element."""
    width = 2 if pooled.is_bf16 else 4
    prefetch_row(pooled.place + width * element, 0, dim * width // 4)


@inlined
def bag_length(lookups: Lookups, table: int, sample: int) -> int:
    """Returns how many ids a sample of a multi-hot batch has in this table."""
    bag = table * lookups.batch + sample
    return int(long_at(lookups.offsets, bag + 1) - long_at(lookups.offsets, bag))


@inlined
def divisor(lookups: Lookups, table: int, position: int) -> int:
    """Returns what the gradient of a lookup is divided by; 0: nothing."""
    if lookups.mean:
        return int(bag_length(lookups, table, sample_of(lookups, table, position)))
    return 0


@inlined
def gradient_part(pooled: Pooled, at: int, count: int, length: int) -> Any:
    """Reads `count` elements from `at` on, zeros above, divided by the length of their bag if there is one."""
    g = load_number(pooled.place, at, count, pooled.is_bf16)
    if length:
        g = divide(g, splat(np.float32(length)))
    return g
