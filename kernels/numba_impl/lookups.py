"""A batch's ids as the numba kernels read them: one flat list, one-hot or not."""

from typing import NamedTuple

import numpy as np
from numba import prange
from numpy.typing import NDArray

from .compiled import parallel, serial


class Lookups(NamedTuple):
    """N ids, table by table, sample by sample. One-hot: `samples` and `offsets` are empty."""

    ids: NDArray[np.int32]  # [N]
    table_start: NDArray[np.int64]  # [T + 1], into ids
    samples: NDArray[np.int32]  # [N], the sample of each id
    offsets: NDArray[np.int64]  # [T * B + 1]
    batch: int
    mean: bool


@parallel
def fill_samples(offsets: NDArray[np.int64], batch: int, samples: NDArray[np.int32]) -> None:
    """Writes the sample that each id belongs to."""
    for bag in prange(offsets.size - 1):
        for i in range(offsets[bag], offsets[bag + 1]):
            samples[i] = bag % batch


@serial
def sample_of(lookups: Lookups, table: int, position: int) -> int:
    """The sample that looked up ids[position]."""
    if lookups.samples.size:
        return np.int64(lookups.samples[position])
    return position - lookups.table_start[table]


@serial
def bag_length(lookups: Lookups, table: int, sample: int) -> int:
    """How many ids sample has in this table."""
    if lookups.offsets.size:
        bag = table * lookups.batch + sample
        return lookups.offsets[bag + 1] - lookups.offsets[bag]
    return 1
