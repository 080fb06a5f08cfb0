"""The arrays that every kernel and everything above it speaks; torch tensors, row-major, on one device."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # whoever needs a constant of this file may do without torch
    from torch import Tensor

from .master_rows import dim_of, row_values
from .row_forms import UNQUANTIZED as UNQUANTIZED


class Tables(NamedTuple):
    """All embedding tables of a model in one arena: table t owns rows row_offset[t] to row_offset[t + 1]."""

    weight: Tensor  # f32[R, D], or rows of another type (master_rows)
    row_offset: Tensor  # int64[T + 1], always on the CPU

    @property
    def num_tables(self) -> int:
        return self.row_offset.numel() - 1

    @property
    def dim(self) -> int:
        return dim_of(self.weight)

    def values(self, first_row: int, end_row: int) -> Tensor:
        """Returns the values f32[N, D] of consecutive rows; a view where they are FP32."""
        return row_values(self.weight[first_row:end_row])


class Bags(NamedTuple):
    """The ids that a batch looks up; ids count from 0 within their own table.

    One-hot: ids int32[T, B] and no offsets.
    Multi-hot: ids int32[N] of all bags, table by table; bag b of table t, which may be empty, is
    ids[offsets[t * B + b] : offsets[t * B + b + 1]]. `mean` divides a bag's sum by its length.
    """

    ids: Tensor
    offsets: Tensor | None  # int64[T * B + 1]
    mean: bool = False


class RowCopy(NamedTuple):
    """A matrix and what must follow it: each row fake-quantized with a scale of its own, rounded to BF16 if that is so.

    UNQUANTIZED bits: only rounded.
    """

    source: Tensor  # f32[O, I]
    target: Tensor  # f32 or bf16[O, I]
    bits: int


class SparseGrad(NamedTuple):
    """Gradients of all tables: unique rows, sorted within each table.

    Table t owns entries table_ptr[t] to table_ptr[t + 1].
    """

    table_ptr: Tensor  # int64[T + 1]
    rows: Tensor  # int32[N], counted within their table
    values: Tensor  # f32[N, D]


class RowChances(NamedTuple):
    """What the chances follow from by which updated rows of few bits are rounded up or down.

    A number's follows from the key, its table, row and column alone, whatever the threads.
    """

    key: int  # 64 bits: another one in every iteration of every run
    first_row: Tensor | None = None  # int64[T]: the number of each table's first row in the arena; None: 0


class RowIntervals(NamedTuple):
    """How much an updated row shrinks for the iterations since its last update, and when that was."""

    decay: float
    last: Tensor  # int32[R]: iterations count from 1; 0: never
    iteration: int  # the present one


class UpdateRule(NamedTuple):
    """An optimizer's update of a row of gradient g: SGD, or row-wise Adagrad where there is an accumulator.

    With g' = g + weight_decay w, SGD is w -= lr g'; Adagrad is accumulator += mean(g'^2), then
    w -= lr g' / (sqrt(accumulator) + eps). With intervals, w is multiplied by 1 - min(decay (iteration - last), 1)
    before the gradient's part is subtracted.
    """

    lr: float
    weight_decay: float
    eps: float = 0.0
    accumulator: Tensor | None = None  # f32[R]
    chances: RowChances | None = None  # of rows that are not FP32
    intervals: RowIntervals | None = None
