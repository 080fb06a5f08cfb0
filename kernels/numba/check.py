"""Whether a batch may enter the model, and whether numbers are finite; `validate` words the message when not.

On one thread: a batch of 2048 samples takes about as long as starting all threads would.
"""

from ..jit.compile import thorough_kernel
from ..jit.memory import float_at, int_at, long_at


@thorough_kernel
def one_hot_fits(first_row: int, num_tables: int, ids: int, batch: int) -> bool:
    """Returns whether ids int32[T, B] lie within their tables; first_row int64[T + 1]."""
    outside = 0
    for table in range(num_tables):
        num_rows = long_at(first_row, table + 1) - long_at(first_row, table)
        for i in range(table * batch, (table + 1) * batch):
            row = int_at(ids, i)
            outside |= (row < 0) | (row >= num_rows)
    return outside == 0


@thorough_kernel
def multi_hot_fits(first_row: int, num_tables: int, ids: int, num_ids: int, offsets: int, batch: int) -> bool:
    """Returns whether ids int32[N] lie in their tables and offsets int64[T * B + 1] rise; first_row int64[T + 1]."""
    num_bags = num_tables * batch
    falls = 0
    for bag in range(num_bags):
        falls |= long_at(offsets, bag + 1) < long_at(offsets, bag)
    if falls != 0 or long_at(offsets, 0) != 0 or long_at(offsets, num_bags) != num_ids:
        return False
    outside = 0
    for table in range(num_tables):
        num_rows = long_at(first_row, table + 1) - long_at(first_row, table)
        for i in range(long_at(offsets, table * batch), long_at(offsets, (table + 1) * batch)):
            row = int_at(ids, i)
            outside |= (row < 0) | (row >= num_rows)
    return outside == 0


@thorough_kernel
def rows_fit(dense: int, num_dense: int, label: int, batch: int) -> bool:
    """Returns whether dense f32[B, num_dense] is finite and every label f32[B] is 0 or 1."""
    wrong = 0
    for i in range(batch * num_dense):
        value = float_at(dense, i)
        wrong |= value - value != 0  # NaN of NaN and of an infinity
    for i in range(batch):
        clicked = float_at(label, i)
        wrong |= (clicked != 0) & (clicked != 1)
    return wrong == 0


@thorough_kernel
def runs_fit(values: int, first: int, after: int, num_runs: int) -> bool:
    """Returns whether elements first[k] to after[k] - 1 of an f32 array are finite for every run; both int64[K]."""
    wrong = 0
    for run in range(num_runs):
        for i in range(long_at(first, run), long_at(after, run)):
            value = float_at(values, i)
            wrong |= value - value != 0
    return wrong == 0
