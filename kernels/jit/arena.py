"""The tables as compiled code reads them."""

from typing import NamedTuple

from ..master_rows import BF16, FP32, INT8, row_bytes
from ..types import Tables
from .compile import inlined
from .memory import prefetch, prefetch_byte

_LINE_FLOATS = 16
_LINE_BYTES = 64
_MOST_LINES = 8


class Arena(NamedTuple):
    """All embedding tables as addresses and sizes; the caller keeps the tensors alive."""

    weight: int  # address of f32[R, D], or of rows of another form
    first_row: int  # address of int64[T + 1]
    num_tables: int
    dim: int
    row_bytes: int = 0
    form: int = 0  # of the rows: FP32_ROWS, BF16_ROWS or INT8_ROWS


FP32_ROWS, BF16_ROWS, INT8_ROWS = range(3)
_FORMS = {FP32: FP32_ROWS, BF16: BF16_ROWS, INT8: INT8_ROWS}


def arena_of(tables: Tables) -> Arena:
    """Returns the addresses and sizes of the tables."""
    weight, dim = tables.weight, tables.dim
    sizes = tables.num_tables, dim, row_bytes(weight.dtype, dim), _FORMS[weight.dtype]
    return Arena(weight.data_ptr(), tables.row_offset.data_ptr(), *sizes)


@inlined
def prefetch_row(weight: int, row: int, dim: int) -> None:
    """Asks for the cache lines of a row, if they are few; the hardware follows long rows by itself."""
    for k in range(0, min(dim, _MOST_LINES * _LINE_FLOATS), _LINE_FLOATS):
        prefetch(weight, row * dim + k)


@inlined
def prefetch_stored(arena: Arena, row: int) -> None:
    """Does what `prefetch_row` does for a row of the arena, whatever its form."""
    if arena.form == FP32_ROWS:
        prefetch_row(arena.weight, row, arena.dim)
    else:
        first = row * arena.row_bytes
        for k in range(0, min(arena.row_bytes, _MOST_LINES * _LINE_BYTES), _LINE_BYTES):
            prefetch_byte(arena.weight, first + k)
        prefetch_byte(arena.weight, first + arena.row_bytes - 1)  # rows do not begin where lines do
