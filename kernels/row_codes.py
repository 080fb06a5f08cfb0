"""Rows that travel between ranks, on a CPU: the unique ones of a batch, their codes, and their values again.

Up to 4 bits two codes share a byte, up to 8 a code has one, up to 16 two; unquantized rows travel as they are.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .jit.arena import Arena, arena_of
from .numba import row_codes
from .numba.coalesce import Sorted, sort_lookups
from .numba.codes import pack_int4, unpack_int4
from .numba.lookups import Lookups
from .types import UNQUANTIZED, Bags, Tables

_NIBBLE_BITS, _BYTE_BITS = 4, 8
_VALUE_BYTES = 4


class UniqueRows(NamedTuple):
    """The rows that a batch looks up, each once, and the lookups as numbers of those."""

    table_ptr: Tensor  # int64[T + 1]
    rows: Tensor  # int32[N], ascending within each table
    bags: Bags  # whose ids count among the rows of their table here


def unique_rows(row_offset: Tensor, bags: Bags) -> UniqueRows:
    """Finds the rows of a batch; row_offset int64[T + 1] says how many each table has."""
    num_tables, size = row_offset.numel() - 1, bags.ids.numel()
    if bags.offsets is None:
        table_start = torch.arange(num_tables + 1) * bags.ids.shape[1]
    else:
        batch = (bags.offsets.numel() - 1) // num_tables
        table_start = bags.offsets[::batch].contiguous() if batch else torch.zeros(num_tables + 1, dtype=torch.int64)
    ids = bags.ids.contiguous()
    words = torch.empty(4, size, dtype=torch.int32)
    start, digits = torch.empty(size, dtype=torch.int64), torch.empty(num_tables, 256, dtype=torch.int64)
    table_ptr = torch.zeros(num_tables + 1, dtype=torch.int64)
    row, position, spare_row, spare_position = (words[i].data_ptr() for i in range(4))
    ordered = Sorted(
        row, position, spare_row, spare_position, start.data_ptr(), table_ptr[1:].data_ptr(), digits.data_ptr()
    )
    lookups = Lookups(ids.data_ptr(), table_start.data_ptr(), 0, 0, 0, 0)
    sort_lookups(Arena(0, row_offset.data_ptr(), num_tables, 0), lookups, ordered)
    torch.cumsum(table_ptr, 0, out=table_ptr)
    rows, place = torch.empty(int(table_ptr[-1]), dtype=torch.int32), torch.empty_like(ids)
    result = row_codes.ListedRows(table_ptr.data_ptr(), rows.data_ptr(), place.data_ptr())
    row_codes.list_rows(num_tables, lookups, ordered, result)
    return UniqueRows(table_ptr, rows, bags._replace(ids=place))


def row_bytes(dim: int, bits: int) -> int:
    """Returns the bytes of a row of codes of so many bits, or of values."""
    if bits <= _NIBBLE_BITS:
        return (dim + 1) // 2
    return dim * _code_bytes(bits)


def encode_rows(
    tables: Tables, pointer: Tensor, rows: Tensor, scales: Tensor, bits: int, out: NDArray[np.uint8]
) -> None:
    """Writes rows int32[N] of the tables, table t's from pointer[t] on, to uint8[N * row_bytes]; scales f32[T]."""
    dim, num_rows = tables.dim, rows.numel()
    codes = out if bits > _NIBBLE_BITS else np.empty(num_rows * dim, dtype=np.uint8)
    # Named, so that a copy that had to be made lives until the kernel is done.
    pointer, rows, scales = pointer.contiguous(), rows.contiguous(), scales.contiguous()
    limit = np.float32((1 << (min(bits, _BYTE_BITS * 2) - 1)) - 1)
    result = row_codes.RowCodes(pointer.data_ptr(), scales.data_ptr(), codes.ctypes.data, _code_bytes(bits))
    row_codes.encode_rows(arena_of(tables), rows.data_ptr(), limit, result)
    if codes is not out:
        pack_int4(codes.view(np.int8).reshape(num_rows, dim), out.reshape(num_rows, row_bytes(dim, bits)))


def decode_rows(
    sent: NDArray[np.uint8], pointer: Tensor, scales: Tensor, bits: int, places: NDArray[np.int64], out: Tensor
) -> None:
    """Writes what `encode_rows` wrote as values to rows places[N] of out f32[M, D]."""
    dim, num_rows = out.shape[1], len(places)
    codes = sent
    if bits <= _NIBBLE_BITS:
        codes = np.empty(num_rows * dim, dtype=np.uint8)
        unpack_int4(sent.reshape(num_rows, row_bytes(dim, bits)), codes.view(np.int8).reshape(num_rows, dim))
    pointer, scales, places = pointer.contiguous(), scales.contiguous(), np.ascontiguousarray(places)
    result = row_codes.RowCodes(pointer.data_ptr(), scales.data_ptr(), codes.ctypes.data, _code_bytes(bits))
    row_codes.decode_rows(result, pointer.numel() - 1, dim, places.ctypes.data, out.data_ptr())


def _code_bytes(bits: int) -> int:
    if bits == UNQUANTIZED:
        return _VALUE_BYTES
    return 1 if bits <= _BYTE_BITS else 2
