"""The tables as compiled code reads them."""

from typing import NamedTuple

from ..types import Tables
from .compile import inlined
from .memory import prefetch

_LINE_FLOATS = 16
_MOST_LINES = 8


class Arena(NamedTuple):
    """All embedding tables as addresses and sizes; the caller keeps the tensors alive."""

    weight: int  # address of f32[R, D]
    first_row: int  # address of int64[T + 1]
    num_tables: int
    dim: int


def arena_of(tables: Tables) -> Arena:
    """Returns the addresses and sizes of the tables."""
    return Arena(tables.weight.data_ptr(), tables.row_offset.data_ptr(), tables.num_tables, tables.weight.shape[1])


@inlined
def prefetch_row(weight: int, row: int, dim: int) -> None:
    """Asks for the cache lines of a row, if they are few; the hardware follows long rows by itself."""
    for k in range(0, min(dim, _MOST_LINES * _LINE_FLOATS), _LINE_FLOATS):
        prefetch(weight, row * dim + k)
