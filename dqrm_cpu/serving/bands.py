"""Tables whose rows lie in bands: each band has its own bits, its own scale and offset, and follows the one before it.

A row's number says which band it is in. `tables.bands` int32[B, 2] holds rows and bits of the bands of all tables, one
table behind another, `C1.codes` the bytes of a table's rows, `tables.step` and `tables.offset` f32[B] what the codes of
each band mean: code * step + offset.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.serving.description import Description
from dqrm_cpu.serving.mapped_file import MappedFile
from dqrm_cpu.serving.stored import Floats, finite, row_bytes, unpacked

BAND_BITS = range(2, 17)


class Band(NamedTuple):
    """Rows of a table that have one width, one scale and one offset."""

    first: int  # row
    rows: int
    bits: int
    begin: int  # byte, among the codes of the table

    @property
    def end(self) -> int:
        """The row behind the last one."""
        return self.first + self.rows


class BandedTable(NamedTuple):
    """A table in bands, as it lies in a file."""

    bands: tuple[Band, ...]
    codes: tuple[NDArray[np.uint8], ...]  # of each band uint8[rows, bytes of a row]
    scale: Floats  # f32[B]
    offset: Floats  # f32[B]

    def values(self, ids: NDArray[np.int64], dim: int) -> Floats:
        """Returns what rows stand for, f32[..., dim] of ids [...], all of them rows."""
        found = np.empty((*ids.shape, dim), np.float32)
        of_ids = np.searchsorted([band.end for band in self.bands], ids, side="right")
        for number in np.unique(of_ids).tolist():
            chosen, band = of_ids == number, self.bands[number]
            codes = unpacked(self.codes[number][ids[chosen] - band.first], band.bits, dim)
            found[chosen] = codes * self.scale[number] + self.offset[number]
        return found


def bands_by_table(pairs: NDArray[np.int32], model: Description) -> list[tuple[Band, ...]]:
    """Returns the bands of each table, of int32[B, 2]; ValueError where the model's tables cannot have them."""
    counts, bits = pairs.astype(np.int64).T
    if (counts < 1).any() or not set(bits.tolist()) <= set(BAND_BITS):
        raise ValueError("bands without rows, or of impossible bits")
    rows = np.cumsum([0, *(column.rows for column in model.categories)])
    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    first = np.searchsorted(ends, rows)
    if ends[-1] != rows[-1] or (ends[first] != rows).any():
        raise ValueError("bands that do not end where its tables end")
    parts = zip(pairwise(first.tolist()), model.categories, strict=True)
    return [bands_of(pairs[begin:end], column.dim) for (begin, end), column in parts]


def bands_of(pairs: NDArray[np.int32], dim: int) -> tuple[Band, ...]:
    """Returns the bands of a table, of int32[B, 2]: rows and bits of each."""
    counts, bits = pairs.astype(np.int64).T
    widths = [row_bytes(dim, its) for its in bits.tolist()]
    first = accumulate(counts.tolist(), initial=0)
    begin = accumulate((rows * width for rows, width in zip(counts.tolist(), widths, strict=True)), initial=0)
    rows_bits = zip(first, counts.tolist(), bits.tolist(), begin, strict=False)
    return tuple(Band(*one) for one in rows_bits)


def code_bytes(bands: Sequence[Band], dim: int) -> int:
    """Returns the bytes of the codes of a table."""
    return bands[-1].begin + bands[-1].rows * row_bytes(dim, bands[-1].bits)


def banded_tables(file: MappedFile, model: Description) -> list[BandedTable]:
    """Returns the tables of a file in bands."""
    pairs = file.tensor("tables.bands", "I32", (None, 2))
    try:
        by_table = bands_by_table(pairs, model)
    except ValueError as error:
        raise file.foreign(f"it has {error}") from None
    scale, offset = (finite(file, f"tables.{part}", len(pairs)) for part in ("step", "offset"))
    tables, first = [], 0
    for t, (column, bands) in enumerate(zip(model.categories, by_table, strict=True)):
        codes = file.tensor(f"C{t + 1}.codes", "U8", (code_bytes(bands, column.dim),))
        widths = [row_bytes(column.dim, band.bits) for band in bands]
        parts = tuple(
            codes[band.begin : band.begin + band.rows * width].reshape(band.rows, width)
            for band, width in zip(bands, widths, strict=True)
        )
        its = slice(first, first + len(bands))
        tables.append(BandedTable(bands, parts, scale[its], offset[its]))
        first += len(bands)
    return tables
