"""Stochastic rounding of table gradients, and of weights: up or down to a multiple of the step, exact on average.

The chance of a value is a hash of its table, row and column under a key: no state, the same for any number of threads.
"""

import numpy as np
import torch
from numba import prange
from torch import Tensor

from .compiled import serial, thoroughly_parallel
from .hashing import mixed
from .memory import float_at, int_at, long_at, set_float

ROWS_PER_ITEM = 512
_BITS = 24
"""Of chance: what a float between 0 and 1 holds exactly."""


@thoroughly_parallel
def round_tables(
    values: int, rows: int, pointer: int, num_tables: int, dim: int, steps: int, key: np.uint64, out: int
) -> None:
    """out f32[N, D] = whole multiples of their table's step f32[T] beside values f32[N, D], one of the two next ones.

    rows int32[N] by table, pointer int64[T + 1]. The values are finite and the steps above 0.
    """
    num_rows = long_at(pointer, num_tables)
    for item in prange((num_rows + ROWS_PER_ITEM - 1) // ROWS_PER_ITEM):
        start, stop = item * ROWS_PER_ITEM, min(num_rows, (item + 1) * ROWS_PER_ITEM)
        for table in range(num_tables):
            first, last = max(start, long_at(pointer, table)), min(stop, long_at(pointer, table + 1))
            table_key = mixed(key, table)
            for entry in range(first, last):
                _round_row(values, entry * dim, dim, float_at(steps, table), mixed(table_key, int_at(rows, entry)), out)


def rounded(values: Tensor, rows: Tensor, pointer: Tensor, steps: Tensor, key: int) -> Tensor:
    """`round_tables` of tensors."""
    # Named, so that a copy that had to be made lives until the kernel is done.
    values, rows, pointer, steps = (tensor.contiguous() for tensor in (values, rows, pointer, steps))
    out = torch.empty_like(values)
    places = values.data_ptr(), rows.data_ptr(), pointer.data_ptr()
    round_tables(*places, steps.numel(), values.shape[1], steps.data_ptr(), np.uint64(key), out.data_ptr())
    return out


@serial
def _round_row(values: int, start: int, dim: int, step: np.float32, key: np.uint64, out: int) -> None:
    for column in range(dim):
        steps_in = float_at(values, start + column) / step
        below = np.float32(np.floor(steps_in))
        # Exact, unlike a sum of the value and a chance: near 32767 that would round, and lean to one side.
        chance = np.float32(mixed(key, column) >> np.uint64(64 - _BITS)) * np.float32(2.0**-_BITS)
        above = np.float32(1) if chance < steps_in - below else np.float32(0)
        set_float(out, start + column, (below + above) * step)
