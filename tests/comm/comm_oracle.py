"""Inputs that every rank can make for every rank, and what the operations must give on them."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch

from dqrm_cpu.comm.exchange.codec import Fp32Codec
from dqrm_cpu.comm.exchange.table_exchange import SparseTableExchange
from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.kernels.types import SparseGrad

NUM_TABLES, DIM, TABLE_ROWS = 3, 5, 40
DENSE_SIZES = (1, 7, 5000, 30_011)
"""Gathered and reduced at the destination, divisible and not."""


def dense_input(rank: int, size: int, dtype: str) -> np.ndarray:
    """Magnitudes far apart, so that another order of summation gives other bits."""
    random = np.random.default_rng([rank, size])
    return (random.standard_normal(size) * 10.0 ** random.integers(-6, 7, size)).astype(dtype)


def payload(rank: int, ranks: int) -> np.ndarray:
    """Rank 0 of several has nothing to say; nobody's length is a multiple of another's."""
    length = 0 if rank == 0 and ranks > 1 else 977 * rank + 5
    return np.random.default_rng(rank).integers(0, 256, length, dtype=np.uint8)


def message_to(case: str, sender: int, receiver: int) -> np.ndarray:
    """Of the case `some`, rank 0 has nothing for rank 1, and no two lengths are equal."""
    length = 0 if case == "none" or (sender, receiver) == (0, 1) else 61 * sender + 130 * receiver + 3
    return np.random.default_rng([sender, receiver]).integers(0, 256, length, dtype=np.uint8)


def ordered_sum(parts: Sequence[np.ndarray]) -> np.ndarray:
    total = parts[0].copy()
    for part in parts[1:]:
        total = total + part
    return total


def sparse_input(rank: int, empty: bool = False) -> SparseGrad:
    """Some rows of each table, none of table 1 on odd ranks."""
    random = np.random.default_rng(100 + rank)
    counts = [0 if empty or (t == 1 and rank % 2) else int(random.integers(1, TABLE_ROWS)) for t in range(NUM_TABLES)]
    rows = [np.sort(random.choice(TABLE_ROWS, count, replace=False)) for count in counts]
    values = dense_input(rank, sum(counts) * DIM, "float32").reshape(-1, DIM)
    return SparseGrad(
        torch.tensor(np.cumsum([0, *counts])),
        torch.from_numpy(np.concatenate(rows).astype(np.int32)),
        torch.from_numpy(values),
    )


def to_dense(grad: SparseGrad) -> np.ndarray:
    """f32[T, rows, D]."""
    dense = np.zeros((NUM_TABLES, TABLE_ROWS, DIM), dtype=np.float32)
    pointers = grad.table_ptr.tolist()
    for table, (first, last) in enumerate(pairwise(pointers)):
        dense[table, grad.rows[first:last].numpy()] = grad.values[first:last].numpy()
    return dense


def merge(grads: Sequence[SparseGrad]) -> SparseGrad:
    """Rows of all, summed in the order of the ranks, owning its memory."""
    sums: dict[tuple[int, int], np.ndarray] = {}
    for grad in grads:
        tables = np.repeat(np.arange(NUM_TABLES), np.diff(grad.table_ptr.numpy()))
        for table, row, value in zip(tables.tolist(), grad.rows.tolist(), grad.values.numpy(), strict=True):
            key = (table, row)
            sums[key] = sums[key] + value if key in sums else value.copy()
    keys = sorted(sums)
    counts = [sum(table == t for table, _ in keys) for t in range(NUM_TABLES)]
    values = np.array([sums[key] for key in keys], dtype=np.float32).reshape(len(keys), grads[0].values.shape[1])
    return SparseGrad(
        torch.tensor(np.cumsum([0, *counts])),
        torch.tensor([row for _, row in keys], dtype=torch.int32),
        torch.from_numpy(values),
    )


def same_bits(one: SparseGrad, other: SparseGrad) -> bool:
    return all(a.numpy().tobytes() == b.numpy().tobytes() for a, b in zip(one, other, strict=True))


def exchange_sparse(transport: Transport, local: Sequence[SparseGrad]) -> SparseGrad:
    """One exchange in FP32."""
    return SparseTableExchange(transport, Fp32Codec(merge)).begin(local)()
