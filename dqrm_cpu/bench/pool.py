"""Batches made before anything is timed: more of them than the caches hold rows, so that every step meets fresh ids."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dqrm_cpu.bench.zipf import scatter, zipf_ranks
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


class Pool:
    """Hands out the batches in turn to whoever steps next: no two steps in a row read the same rows."""

    def __init__(self, works: Sequence[Work]) -> None:
        self._works = tuple(works)
        self._at = 0

    def __len__(self) -> int:
        return len(self._works)

    def next(self) -> Work:
        work = self._works[self._at]
        self._at = (self._at + 1) % len(self._works)
        return work


def pool_size(model: ModelConfig, batch_size: int, cache_bytes: int) -> int:
    """How many batches look up several times as many bytes as the largest cache holds."""
    looked_up = batch_size * len(model.table_rows) * model.embedding_dim * _FLOAT_BYTES
    return min(_MOST, max(_FEWEST, -(-_CACHES_COVERED * cache_bytes // looked_up)))


def make_pool(model: ModelConfig, batch_size: int, count: int, seed: int) -> Pool:
    """`count` one-hot batches with Zipf ids and random labels; the same for the same seed."""
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
