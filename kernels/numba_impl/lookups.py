"""A batch's ids as the numba kernels read them: one flat list, one-hot or not."""

from typing import NamedTuple

from numba import prange

from .compiled import inlined, parallel
from .memory import int_at, long_at, set_int


class Lookups(NamedTuple):
    """N ids, table by table, sample by sample, as addresses; the caller keeps the arrays alive."""

    ids: int  # int32[N]
    table_start: int  # int64[T + 1], into ids
    samples: int  # int32[N], the sample of each id; 0: one-hot
    offsets: int  # int64[T * B + 1]; 0: one-hot
    batch: int
    mean: int  # 1: gradients are divided by the length of their bag


@parallel
def fill_samples(offsets: int, num_bags: int, batch: int, samples: int) -> None:
    """Writes the sample that each id belongs to."""
    for bag in prange(num_bags):
        for i in range(long_at(offsets, bag), long_at(offsets, bag + 1)):
            set_int(samples, i, bag % batch)


@inlined
def sample_of(lookups: Lookups, table: int, position: int) -> int:
    """The sample that looked up id number `position`."""
    if lookups.samples:
        return int(int_at(lookups.samples, position))
    return position - int(long_at(lookups.table_start, table))


@inlined
def bag_length(lookups: Lookups, table: int, sample: int) -> int:
    """How many ids a sample of a multi-hot batch has in this table."""
    bag = table * lookups.batch + sample
    return int(long_at(lookups.offsets, bag + 1) - long_at(lookups.offsets, bag))
