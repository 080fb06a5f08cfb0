"""Stochastic rounding of table gradients, and of weights: up or down to a multiple of the step, exact on average.

The chance of a value is a hash of its table, row and column under a key: no state, the same for any number of threads.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .compiled import serial, thorough_kernel
from .hashing import mixed
from .memory import float_at, int_at, long_at, set_float
from .threads import on_all_threads

ROWS_PER_ITEM = 512
_BITS = 24
"""Of chance: what a float between 0 and 1 holds exactly."""


class Rounding(NamedTuple):
    """Values of tables, and what they are rounded with; addresses. The values are finite and the steps above 0."""

    values: int  # f32[N, D]
    rows: int  # int32[N], by table
    pointer: int  # int64[T + 1], into both
    num_tables: int
    dim: int
    steps: int  # f32[T]
    key: np.uint64


@thorough_kernel
def round_tables(rounding: Rounding, out: int) -> None:
    """out f32[N, D] = whole multiples of their table's step beside the values, one of the two next ones."""
    num_rows = long_at(rounding.pointer, rounding.num_tables)
    on_all_threads((num_rows + ROWS_PER_ITEM - 1) // ROWS_PER_ITEM, _round_item, (rounding, out))


@serial
def _round_item(rounding: Rounding, out: int, item: int) -> None:
    start, stop, dim = item * ROWS_PER_ITEM, (item + 1) * ROWS_PER_ITEM, rounding.dim
    for table in range(rounding.num_tables):
        first, last = max(start, long_at(rounding.pointer, table)), min(stop, long_at(rounding.pointer, table + 1))
        step, of_table = float_at(rounding.steps, table), mixed(rounding.key, table)
        for entry in range(first, last):
            _round_row(rounding.values, entry * dim, dim, step, mixed(of_table, int_at(rounding.rows, entry)), out)


def rounded(values: Tensor, rows: Tensor, pointer: Tensor, steps: Tensor, key: int) -> Tensor:
    """`round_tables` of tensors."""
    # Named, so that a copy that had to be made lives until the kernel is done.
    values, rows, pointer, steps = (tensor.contiguous() for tensor in (values, rows, pointer, steps))
    out = torch.empty_like(values)
    places = values.data_ptr(), rows.data_ptr(), pointer.data_ptr()
    rounding = Rounding(*places, steps.numel(), values.shape[1], steps.data_ptr(), np.uint64(key))
    round_tables(rounding, out.data_ptr())
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
