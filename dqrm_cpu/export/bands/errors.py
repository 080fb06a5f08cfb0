"""What it costs to keep the rows of a class in so many bits, or not at all: squared errors, each as often as training
met the row.

Rows are compared with what the trained model computes with: the values of its codes, or its weights where it trained in
FP32. Codes stand for code * scale + offset, one scale and offset for a class.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.export.bands.classes import RankedRows
from dqrm_cpu.export.write import TableRows, rows_at_once
from dqrm_cpu.quant.formula import SMALLEST_SCALE, Formula, largest_code

Floats = NDArray[np.float32]

FOUND_BITS = (2, 4, 8)
"""Widths for which a scale is searched; a model that was trained in codes is offered its own too, and none above it."""

ZERO, UNSEEN, MEAN = "zero", "unseen", "mean"
SUBSTITUTES = (UNSEEN, ZERO, MEAN)
"""What stands for ids that a file does not keep: the row of unseen ids as it was trained, nothing, or the mean of that
row and the rare ones, each as often as training met it."""

_RARE = 8
"""The count below which rows belong to that mean."""

_HALF_BINS = 1023
_FINER = 2 ** np.arange(0, 6.01, 0.25)
"""The scales that are tried are that of the largest value, divided by these."""


@dataclass(frozen=True)
class ModelRows:
    """The rows of a table as the trained model computes with them."""

    rows: TableRows
    formula: Formula | None  # None: they were trained in FP32
    scale: Floats  # f32[1, 1]
    bound: np.float32  # on their magnitude, more or less

    def blocks(self) -> Iterator[Floats]:
        """Yields f32[n, D], all rows in their order."""
        for weight in self.rows.blocks(rows_at_once(self.rows.shape[1])):
            yield weight if self.formula is None else self.formula.values(weight, self.scale)


class Meanings(NamedTuple):
    """The scale and offset of each class of rows at one number of bits: f32[classes] each."""

    bits: int
    scale: Floats
    offset: Floats

    def codes(self, values: Floats, of_rows: NDArray[np.integer]) -> Floats:
        """Returns the nearest codes of values f32[n, D], whose classes are `of_rows` [n]."""
        largest = largest_code(self.bits)
        steps = (values - self.offset[of_rows, None]) / self.scale[of_rows, None]
        nearest: Floats = steps.round().clip(-largest - 1, largest)
        return nearest

    def values(self, codes: Floats, of_rows: NDArray[np.integer]) -> Floats:
        """Returns the values that codes f32[n, D] stand for."""
        found: Floats = codes * self.scale[of_rows, None] + self.offset[of_rows, None]
        return found


@dataclass(frozen=True)
class TableErrors:
    """The sums of a table's squared errors, and the codes by which it would have them."""

    meanings: tuple[Meanings, ...]  # by width, rising
    kept: NDArray[np.float64]  # [widths, classes]
    left_out: NDArray[np.float64]  # [substitutes, classes]: as SUBSTITUTES
    substitutes: Floats  # f32[substitutes, D]


def table_errors(table: ModelRows, ranked: RankedRows) -> TableErrors:
    """Goes through the rows of a table three times."""
    classes = ranked.class_of_rows()
    histograms, substitutes = _histograms(table, ranked, classes)
    meanings = tuple(_meanings(table, histograms))
    kept = np.zeros((len(meanings), ranked.num_classes))
    left_out = np.zeros((len(SUBSTITUTES), ranked.num_classes))
    first = 0
    for values in table.blocks():
        rows = slice(first, first + len(values))
        of_rows, weights = classes[rows], ranked.counts[rows]
        ways = [its.values(its.codes(values, of_rows), of_rows) for its in meanings]
        for sums, found in zip((*kept, *left_out), (*ways, *substitutes), strict=True):
            errors = np.square(values - found).sum(1, dtype=np.float64) * weights
            sums += np.bincount(of_rows, errors, ranked.num_classes)
        first += len(values)
    return TableErrors(meanings, kept, left_out, substitutes)


def _histograms(table: ModelRows, ranked: RankedRows, classes: NDArray[np.uint8]) -> tuple[NDArray[np.float64], Floats]:
    """Returns how often each class has a value, f64[classes, bins] of [-bound, bound], and what may stand for rows."""
    bins, dim = 2 * _HALF_BINS + 1, table.rows.shape[1]
    found = np.zeros(ranked.num_classes * bins)
    total, weight, unseen, first = np.zeros(dim), 0.0, np.zeros(dim, np.float32), 0
    for values in table.blocks():
        rows = slice(first, first + len(values))
        counts = ranked.counts[rows]
        at = (values * (_HALF_BINS / table.bound)).round().clip(-_HALF_BINS, _HALF_BINS).astype(np.int32) + _HALF_BINS
        at += classes[rows].astype(np.int32)[:, None] * bins
        found += np.bincount(at.reshape(-1), np.repeat(counts.astype(np.float64), dim), found.size)
        if first == 0:
            unseen = values[0].copy()
        rare = np.where((counts < _RARE) | (np.arange(first, first + len(values)) == 0), counts, 0)
        total += rare @ values.astype(np.float64)
        weight += float(rare.sum())
        first += len(values)
    mean = (total / weight).astype(np.float32) if weight else unseen
    by_name = {UNSEEN: unseen, ZERO: np.zeros(dim, np.float32), MEAN: mean}
    return found.reshape(-1, bins), np.stack([by_name[name] for name in SUBSTITUTES])


def _meanings(table: ModelRows, histograms: NDArray[np.float64]) -> Iterator[Meanings]:
    """Yields what codes of each width are to mean, the narrowest first."""
    count = len(histograms)
    own_bits = 0 if table.formula is None else table.formula.bits
    for bits in FOUND_BITS:
        if table.formula is None or bits < own_bits:
            scale, offset = _found(histograms, table.bound, bits)
            yield Meanings(bits, scale, offset)
    if table.formula is not None:
        grid = table.formula.grid(table.scale)
        its_offset = np.zeros(1, np.float32) if grid.offset is None else grid.offset
        yield Meanings(
            own_bits, *(np.full(count, part.reshape(-1)[0], np.float32) for part in (grid.scale, its_offset))
        )


def _found(histograms: NDArray[np.float64], bound: np.float32, bits: int) -> tuple[Floats, Floats]:
    """Searches the scale and offset of each class that lose least, f32[classes].

    Of 2 bits half a scale may be the offset: then the codes lie as far on either side of zero.
    """
    largest, centers = largest_code(bits), np.arange(-_HALF_BINS, _HALF_BINS + 1) * (float(bound) / _HALF_BINS)
    magnitudes = np.where(histograms > 0, np.abs(centers), 0).max(1)
    best = np.full(len(histograms), np.inf)
    scales, offsets = np.full(len(histograms), SMALLEST_SCALE), np.zeros(len(histograms), np.float32)
    for share in (0.0, 0.5) if bits == 2 else (0.0,):
        for finer in _FINER:
            scale = np.maximum(magnitudes / ((largest + share) * finer), SMALLEST_SCALE)[:, None]
            codes = (centers / scale - share).round().clip(-largest - 1, largest)
            lost = (histograms * np.square(centers - (codes + share) * scale)).sum(1)
            better = lost < best
            best[better] = lost[better]
            scales[better], offsets[better] = scale[better, 0], (share * scale)[better, 0]
    return scales.astype(np.float32), offsets.astype(np.float32)


def model_rows(tables: Sequence[TableRows], formula: Formula, scale: Floats, is_float: bool) -> list[ModelRows]:
    """Returns the tables of a model as it computes with them; `is_float`: it was trained in FP32."""
    found = []
    for rows, its in zip(tables, scale, strict=True):
        own = its.reshape(1, 1)
        grid = formula.grid(own)
        reach = np.abs(grid.scale) * np.float32(2 ** (formula.bits - 1))
        bound = np.float32((reach if grid.offset is None else reach + np.abs(grid.offset)).reshape(-1)[0])
        found.append(ModelRows(rows, None if is_float else formula, own, max(bound, SMALLEST_SCALE)))
    return found
