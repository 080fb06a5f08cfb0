"""How rows of tables lie in memory and in checkpoints (`master_rows.py` says what the forms mean), without torch."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

UNQUANTIZED = 32
"""The bit width that means: leave the values in FP32."""

ROW_TYPE_NAMES: Mapping[str, str] = MappingProxyType({"fp32": "float32", "bf16": "bfloat16", "int8": "uint8"})
"""The types of rows as torch names them, by the names of the setting train.master_rows."""

MANTISSA_BITS = 23
NOT_FINITE = 255  # the exponent of infinity

_BYTES = {"fp32": 4, "bf16": 2, "int8": 1}


def num_columns(form: str, dim: int) -> int:
    """Returns how many elements of its type a row of D values takes."""
    return dim + 1 if form == "int8" else dim


def stored_bytes(form: str, dim: int) -> int:
    """Returns the bytes of a row of D values."""
    return num_columns(form, dim) * _BYTES[form]


def stored_values(rows: NDArray[Any]) -> NDArray[np.float32]:
    """Returns the values f32[N, D] of rows: f32[N, D] themselves, the bits uint16[N, D] of BF16, or uint8[N, D + 1]."""
    if rows.dtype == np.float32:
        return rows
    if rows.dtype == np.uint16:
        return (rows.astype(np.uint32) << np.uint32(16)).view(np.float32)
    scale = (rows[:, -1:].astype(np.uint32) << np.uint32(MANTISSA_BITS)).view(np.float32)
    values: NDArray[np.float32] = rows[:, :-1].view(np.int8).astype(np.float32) * scale
    return values
