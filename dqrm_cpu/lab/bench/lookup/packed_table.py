"""One table of random codes, in the forms in which the contestants of `bench lookup` take it."""

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from dqrm_cpu.model.tables import map_floats

BITS, SCALE = 4, 2.0**-7
"""The scale is a power of two: exact in FP16, in which the others keep one for each row."""

_EXCESS, _LOWER = 8, 0x0F
_FLOAT_BYTES, _ROWS_AT_ONCE = 4, 1 << 18
_PARAMETER_BYTES = 4
_ROW_PARAMETERS = np.array([SCALE, -_EXCESS * SCALE], np.float16)


class PackedTable:
    """Codes of 4 bits with one scale; all other forms stand for the same numbers, on huge pages where there are any."""

    def __init__(self, num_rows: int, dim: int, seed: int) -> None:
        self.num_rows, self.dim, self._seed = num_rows, dim, seed

    @cached_property
    def codes(self) -> Tensor:
        """uint8[rows, dim / 2], two's complement, the lower bits first."""
        generator = np.random.Generator(np.random.SFC64(self._seed))
        codes = map_bytes(self.num_rows * self.dim // 2)
        for start in range(0, codes.numel(), _ROWS_AT_ONCE):
            part = codes[start : start + _ROWS_AT_ONCE]
            part.copy_(torch.frombuffer(bytearray(generator.bytes(part.numel())), dtype=torch.uint8))
        return codes.view(self.num_rows, self.dim // 2)

    def with_row_parameters(self, first: bool) -> Tensor:
        """Returns uint8[rows, dim / 2 + 4]: codes from 0 to 15, and scale and offset of each row, `first` or last."""
        width = self.dim // 2
        rows = map_bytes(self.num_rows * (width + _PARAMETER_BYTES)).view(self.num_rows, -1)
        parameters = rows[:, :_PARAMETER_BYTES] if first else rows[:, width:]
        codes = rows[:, _PARAMETER_BYTES:] if first else rows[:, :width]
        parameters.copy_(torch.from_numpy(_ROW_PARAMETERS.view(np.uint8)))
        torch.bitwise_xor(self.codes, _EXCESS << BITS | _EXCESS, out=codes)
        return rows

    @cached_property
    def floats(self) -> Tensor:
        """f32[rows, dim]."""
        floats = torch.from_numpy(map_floats(self.num_rows * self.dim)).view(self.num_rows, self.dim)
        both = torch.arange(256)
        pairs = torch.stack([both & _LOWER, both >> BITS], dim=1)
        values = torch.where(pairs < _EXCESS, pairs, pairs - 2 * _EXCESS).float() * SCALE
        for start in range(0, self.num_rows, _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            floats[rows] = values[self.codes[rows].long()].view(-1, self.dim)
        return floats

    @property
    def all_bytes(self) -> int:
        """Returns the bytes of all forms together, the one with parameters of rows twice."""
        row_bytes = 3 * self.dim // 2 + 2 * _PARAMETER_BYTES + self.dim * _FLOAT_BYTES
        return self.num_rows * row_bytes


def map_bytes(count: int) -> Tensor:
    """Returns uint8[count] of a mapping of its own, on huge pages where there are any."""
    return torch.from_numpy(map_floats(-(-count // _FLOAT_BYTES)).view(np.uint8)[:count])
