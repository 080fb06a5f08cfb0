"""What a packed model is made of: arrays that lie in a file, and the bounds within which compiled code takes them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

MOST_INTEGER_INPUTS = 1 << 15
"""Of a layer that multiplies whole numbers: sums of as many products fit into int32 by far."""

LEAST_MAGNITUDE = np.float32(1e-30)
"""Of a row's largest number that is rounded to bytes: below it all count as zeros, as the reciprocal has no number."""


class RefusedRowsError(Exception):
    """An id is no row, a number is not finite, or a sparse table contradicts itself: nothing was scored."""


@dataclass(frozen=True)
class BandArrays:
    """Some of the rows of a table, each behind those of the bands before."""

    codes: NDArray[np.uint8]  # [rows, bytes of a row]
    first: int  # the number of its first row
    bits: int
    scale: Floats  # f32[1]
    offset: Floats  # f32[1]


@dataclass(frozen=True)
class TableArrays:
    """A packed table, or one in FP32 (`bits` 32), and where its ids stand in a row of ids."""

    codes: NDArray[np.uint8]  # [stored rows, bytes of a row]
    num_rows: int
    dim: int
    bits: int
    scale: Floats  # f32[1]
    offset: Floats | None  # f32[1]
    first_slot: int
    num_slots: int
    is_bag: bool  # ids may be -1, for none
    bitmap: NDArray[np.uint8] | None = None  # of a sparse table: a bit for each row that is stored
    rank: NDArray[np.int32] | None = None  # the rows stored before every 512 rows
    bands: Sequence[BandArrays] = ()  # of a table in bands, whose codes, bits, scale and offset are theirs
    rounded_bits: int = 0  # of the codes that a table in FP32 is rounded to as it is read; 0: it is not


@dataclass(frozen=True)
class IntegerInputs:
    """The numbers that a layer reads and rounds to bytes."""

    is_unsigned: bool  # none is negative
    first_inputs: int  # so many have a scale of their own in each row, the others another one; or all have one


@dataclass(frozen=True)
class LayerArrays:
    """A layer: `values` f32[outputs, inputs] are its weight, or with a scale its codes, of `bits`."""

    values: Floats
    bits: int
    scale: Floats | None  # f32[outputs], or f32[1] for all of them
    bias: Floats | None
    rectify: bool
    grid: tuple[np.float32, int, int] | None = None  # scale, least and largest code of inputs that are rounded
    ends_cross: bool = False
    integers: IntegerInputs | None = None  # of a layer with codes of 8 bits or fewer: multiply them as they are


@dataclass(frozen=True)
class NetworkArrays:
    """A packed model."""

    tables: Sequence[TableArrays]
    projections: Sequence[LayerArrays | None]  # by table
    bottom: Sequence[LayerArrays]
    cross: Sequence[LayerArrays]
    top: Sequence[LayerArrays]
    dim: int  # of the vectors that interact
    is_dot: bool  # else they are joined as they are
    is_mean: bool  # bags
