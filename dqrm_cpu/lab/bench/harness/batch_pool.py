"""Batches made before anything is timed: more of them than the caches hold rows, so that every step meets fresh ids."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dqrm_cpu.config import ModelConfig
from dqrm_cpu.data.batch import Batch

_FLOAT_BYTES = 4
_CACHES_COVERED = 4
_FEWEST, _MOST = 16, 1024


@dataclass(frozen=True)
class Work:
    """One batch, and its ids once more as other libraries take them: no contestant pays for the conversion."""

    batch: Batch
    long_ids: Tensor  # int64[T, B]

    @cached_property
    def arrays(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Numbers f32[B, D] and ids int64[B, T], as exported files are read with; made when first asked for."""
        return self.batch.dense.numpy(), np.ascontiguousarray(self.long_ids.numpy().T)


class Pool:
    """Batches that are handed out in turn to whoever steps next: no two steps in a row read the same rows."""

    def __init__(self, works: Sequence[Work]) -> None:
        self._works = tuple(works)
        self._at = 0

    def next(self) -> Work:
        work = self._works[self._at]
        self._at = (self._at + 1) % len(self._works)
        return work

    def peek(self) -> Work:
        """Returns the batch that is handed out next."""
        return self._works[self._at]


def pool_size(model: ModelConfig, batch_size: int, cache_bytes: int) -> int:
    """Returns how many batches look up several times as many bytes as the largest cache holds."""
    looked_up = batch_size * len(model.table_rows) * model.embedding_dim * _FLOAT_BYTES
    return min(_MOST, max(_FEWEST, -(-_CACHES_COVERED * cache_bytes // looked_up)))


def make_pool(model: ModelConfig, batch_size: int, count: int, seed: int) -> Pool:
    """Makes `count` one-hot batches with Zipf ids and random labels; the same for the same seed."""
    generator = np.random.Generator(np.random.PCG64(seed))
    ids = torch.empty(count, len(model.table_rows), batch_size, dtype=torch.int32)
    for table, num_rows in enumerate(model.table_rows):
        ranks = zipf_ranks(num_rows, generator.random(count * batch_size))
        ids[:, table] = torch.from_numpy(scatter(ranks, num_rows).astype(np.int32)).view(count, batch_size)
    # Counts of a few orders of magnitude, through the logarithm that training applies to them.
    dense = np.log1p(np.exp(2 * generator.standard_normal((count, batch_size, model.num_dense))))
    label = generator.integers(0, 2, (count, batch_size))
    dense_f32, label_f32 = torch.from_numpy(dense).float(), torch.from_numpy(label).float()
    return Pool([Work(Batch(dense_f32[i], ids[i], None, label_f32[i]), ids[i].long()) for i in range(count)])


EXPONENT = 1.05

_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


def zipf_ranks(num_rows: int, uniform: NDArray[np.float64], exponent: float = EXPONENT) -> NDArray[np.int64]:
    """Draws ranks 0 to num_rows - 1, rank k with probability proportional to (k + 1) ** -exponent.

    By the inverse of the distribution, from numbers of [0, 1).
    """
    distribution = np.arange(1, num_rows + 1, dtype=np.float64)
    np.power(distribution, -exponent, out=distribution)
    np.cumsum(distribution, out=distribution)
    ranks: NDArray[np.int64] = np.searchsorted(distribution, uniform * distribution[-1], side="right")
    return np.minimum(ranks, num_rows - 1)  # rounding of the product may reach the end


def scatter(ranks: NDArray[np.int64], num_rows: int) -> NDArray[np.int64]:
    """Returns the rows of ranks: a fixed permutation of the table that lays hot rows far from each other.

    Steps of the golden ratio around the table keep the first k ranks at least about num_rows / (2.2 k) apart.
    """
    return ranks * _stride(num_rows) % num_rows


def _stride(num_rows: int) -> int:
    """Returns the next number above the golden part of the table without a common factor: no row is met twice."""
    stride = max(1, round(num_rows * _GOLDEN_RATIO))
    while math.gcd(stride, num_rows) != 1:
        stride += 1
    return stride
