"""Which bits the rows of each class get: most error taken away for each byte first, until bytes run out.

Each class begins as cheap as it can be, left out or in the fewest bits, and may step to a wider width. Steps are those
of the lower convex hull of error over bytes, so that those of a class come in their order; all steps of all tables are
taken by their slope, the last one for as many rows as there is room for. A plan for more bytes has taken all steps of
one for fewer, and its error is no larger.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from dqrm_cpu.errors import ConfigError
from dqrm_cpu.export.bands.classes import RankedRows

LEFT_OUT = -1


class Width(NamedTuple):
    """One way to keep the rows of a class, or not to."""

    meaning: int  # the number among those of the table; LEFT_OUT
    row_bytes: int  # of a row in all, its key in the vocabulary among them
    error: float  # of all rows of the class


@dataclass(frozen=True)
class TableOptions:
    """The widths that each class of a table can have, the cheapest first; one where a class is kept as it is."""

    ranked: RankedRows
    widths: tuple[tuple[Width, ...], ...]  # by class


class Step(NamedTuple):
    """From one width of a class to a wider one."""

    slope: float  # error taken away for each byte
    table: int
    of_class: int
    before: Width
    after: Width


class ChosenBand(NamedTuple):
    """Neighbouring places of a table that are kept at one width."""

    first: int  # place, in the order of the table's rows
    rows: int
    of_class: int
    meaning: int


@dataclass(frozen=True)
class Plan:
    """What a file keeps: so many whole steps, and the next one for some rows."""

    bands: tuple[tuple[ChosenBand, ...], ...]  # by table, at least one each
    error: float  # estimated: the rows of a step count alike


class Choice:
    """All plans of a model, from the smallest file to the largest one that is worth its bytes."""

    def __init__(self, tables: Sequence[TableOptions]) -> None:
        self._tables = tables
        self._steps = sorted(
            (
                step
                for t, table in enumerate(tables)
                for k, widths in enumerate(table.widths)
                for step in _steps(t, k, _rows(table, k), widths)
            ),
            key=lambda step: (-step.slope, step.table, step.of_class),
        )
        rows = [_rows(tables[step.table], step.of_class) for step in self._steps]
        self._ends = np.cumsum([0, *rows])  # of each step, in rows that were widened

    @property
    def length(self) -> int:
        """The widenings of single rows, all steps together: a plan is so many of them."""
        return int(self._ends[-1])

    def plan(self, widened: int) -> Plan:
        """Returns the plan after so many widenings of a row."""
        done = int(np.searchsorted(self._ends, widened, side="right")) - 1
        now = [[widths[0] for widths in table.widths] for table in self._tables]
        error = sum(width.error for widths in now for width in widths)
        for step in self._steps[:done]:
            now[step.table][step.of_class] = step.after
            error -= step.before.error - step.after.error
        part, rest = None, widened - int(self._ends[done])
        if rest:
            part = self._steps[done]
            share = rest / _rows(self._tables[part.table], part.of_class)
            error -= share * (part.before.error - part.after.error)
        return Plan(
            tuple(
                tuple(_bands(table, widths, part if part and part.table == t else None, rest))
                for t, (table, widths) in enumerate(zip(self._tables, now, strict=True))
            ),
            error,
        )

    def largest_within(self, budget: int, size_of: Callable[[Plan], int]) -> Plan:
        """Returns the plan with the least error whose size is within the budget; ConfigError where none is.

        :param size_of: the bytes of a plan's file, which must not fall from a plan to one with more widenings.
        """
        smallest = size_of(self.plan(0))
        if smallest > budget:
            raise ConfigError(
                f"--budget {budget:,} bytes: the smallest file of this model has {smallest:,}, with nothing of its "
                "tables but what stands for unseen ids; give as many or more, or train a model with smaller MLPs"
            )
        low, high = 0, self.length
        while low < high:
            middle = (low + high + 1) // 2
            if size_of(self.plan(middle)) <= budget:
                low = middle
            else:
                high = middle - 1
        return self.plan(low)


def _rows(table: TableOptions, of_class: int) -> int:
    return table.ranked.bounds[of_class + 1] - table.ranked.bounds[of_class]


def _steps(table: int, of_class: int, rows: int, widths: Sequence[Width]) -> list[Step]:
    """Returns the steps along the lower convex hull; none from a width to one that is no better."""
    hull: list[Width] = []
    for width in widths:
        if hull and width.error >= hull[-1].error:
            continue
        while len(hull) > 1 and _slope(hull[-1], width) >= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(width)
    return [Step(_slope(before, after) / rows, table, of_class, before, after) for before, after in pairwise(hull)]


def _slope(before: Width, after: Width) -> float:
    """Returns the error that goes for each byte of a row."""
    return (before.error - after.error) / (after.row_bytes - before.row_bytes)


def _bands(table: TableOptions, widths: Sequence[Width], part: Step | None, widened: int) -> list[ChosenBand]:
    """Returns the bands of a table; of the class of a step that is taken in part the first rows are widened."""
    found = []
    for k, (width, (first, end)) in enumerate(zip(widths, pairwise(table.ranked.bounds), strict=True)):
        pieces = [(first, end, width)]
        if part is not None and part.of_class == k:
            pieces = [(first, first + widened, part.after), (first + widened, end, part.before)]
        found += [
            ChosenBand(start, stop - start, k, its.meaning) for start, stop, its in pieces if its.meaning != LEFT_OUT
        ]
    return found
