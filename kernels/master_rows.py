"""The rows that training updates, in FP32 or fewer bits: how they lie in memory, and what they are worth.

The type of a tensor of rows tells its form. float32: the values. bfloat16: the values, in 2 bytes each. uint8: rows
[N, D + 1], the codes of a row in int8, -127 to 127, and behind them the scale of the row, a power of two, as the
exponent that FP32 has for it. So a value is code * scale exactly, and code = value / scale exactly: a row that nothing
moves is written as it was read. Exponent 255 stands for a row that held NaN or an infinity: its values are NaN.
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from .row_forms import MANTISSA_BITS as MANTISSA_BITS
from .row_forms import NOT_FINITE as NOT_FINITE
from .row_forms import ROW_TYPE_NAMES

FP32, BF16, INT8 = torch.float32, torch.bfloat16, torch.uint8

ROW_TYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {form: getattr(torch, name) for form, name in ROW_TYPE_NAMES.items()}
)
"""The types of master rows, by the names of the setting train.master_rows."""

LARGEST_CODE = 127
LEAST_KEPT = 48
"""The largest code of a row, from which on its scale stays as it is: only rows that shrink further get a finer one."""

LARGEST_MANTISSA = 0x7E0000  # of 127 times a power of two
CODE_BITS = 6  # 127 is 2^6 times a number below 2

_ROWS_AT_ONCE = 1 << 16


def columns(dtype: torch.dtype, dim: int) -> int:
    """Returns how many elements of a type a row of D values takes."""
    return dim + 1 if dtype == INT8 else dim


def row_bytes(dtype: torch.dtype, dim: int) -> int:
    """Returns the bytes of a row of D values."""
    return columns(dtype, dim) * dtype.itemsize


def dim_of(rows: Tensor) -> int:
    """Returns how many values a row has."""
    return rows.shape[1] - 1 if rows.dtype == INT8 else rows.shape[1]


def row_values(rows: Tensor) -> Tensor:
    """Returns the values f32[N, D] of rows; those that are FP32 are themselves."""
    if rows.dtype != INT8:
        return rows.float()
    scale = (rows[:, -1:].int() << MANTISSA_BITS).view(torch.float32)
    return rows[:, :-1].view(torch.int8).float().mul_(scale)


def blocks_of_values(rows: Tensor, most_rows: int = _ROWS_AT_ONCE) -> Iterator[Tensor]:
    """Yields the values f32[n, D] of all rows in their order, so many rows at once at most."""
    for part in torch.split(rows, most_rows):
        yield row_values(part)


def nearest_rows(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns values f32[N, D] as rows of a type, rounded to the nearest, half to even."""
    if dtype != INT8:
        return values.to(dtype)
    bits = values.abs().view(torch.int32).amax(1, keepdim=True)
    exponent = (bits >> MANTISSA_BITS) - CODE_BITS + ((bits & 0x7FFFFF) > LARGEST_MANTISSA).int()
    exponent.clamp_(min=1)
    inverse = ((254 - exponent) << MANTISSA_BITS).view(torch.float32)
    codes = torch.round(values * inverse)
    is_finite = bits < NOT_FINITE << MANTISSA_BITS
    exponent = torch.where(is_finite, torch.where(bits > 0, exponent, 0), NOT_FINITE)
    codes = torch.where(is_finite, codes, 0.0)
    return torch.cat((codes.to(torch.int8).view(torch.uint8), exponent.to(torch.uint8)), 1)
