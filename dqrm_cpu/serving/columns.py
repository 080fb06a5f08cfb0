"""Rows as callers have them, dictionaries or a table of any library, as columns of cells."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dqrm_cpu.serving.cells import Cells, UnusableRowError

_MOST_COMPARED = 1000


class RowColumns:
    """The columns of rows to score, by name: of dictionaries, or of a pandas, polars or pyarrow table."""

    def __init__(self, rows: Any) -> None:
        self._rows, self._table = None, None
        if isinstance(rows, Mapping):
            self._table, self.names = rows, [str(name) for name in rows]
            if any(isinstance(cells, str | bytes) or not hasattr(cells, "__len__") for cells in rows.values()):
                raise UnusableRowError("a dictionary of single values is one row: put it into a list, [row]")
            counts = {len(cells) for cells in rows.values()}
            if len(counts) > 1:
                raise UnusableRowError("the columns have different lengths")
            self.num_rows = counts.pop() if counts else 0
        elif hasattr(rows, "column_names") and hasattr(rows, "column"):  # pyarrow
            self._table = {name: rows.column(name) for name in rows.column_names}
            self.names, self.num_rows = list(rows.column_names), int(rows.num_rows)
        elif hasattr(rows, "columns") and hasattr(rows, "__getitem__"):  # pandas, polars
            self._table, self.names, self.num_rows = rows, [str(name) for name in rows.columns], len(rows)
        elif isinstance(rows, Sequence) and all(isinstance(row, Mapping) for row in rows):
            self._rows, self.num_rows = rows, len(rows)
            self.names = list(dict.fromkeys(name for row in rows[:_MOST_COMPARED] for name in row))
        else:
            raise UnusableRowError(f"{type(rows).__name__} are no rows; give a list of dictionaries, or a table")

    def cells(self, name: str) -> Cells:
        """Returns a column; UnusableRowError where no row has it. A row without it has no value there."""
        if self._rows is not None:
            found = [row.get(name) for row in self._rows]
            if found and found[0] is None and not any(name in row for row in self._rows):
                raise self._missing(name)
            return found
        if name not in self.names:
            raise self._missing(name)
        assert self._table is not None
        return _plain(self._table[name])

    def _missing(self, name: str) -> UnusableRowError:
        near = difflib.get_close_matches(name, self.names[:_MOST_COMPARED], 1)
        hint = f"; nearest is {near[0]!r}" if near else ""
        return UnusableRowError(f"there is no column {name!r}{hint}")


def _plain(column: Any) -> Cells:
    """Returns a column as a NumPy array of numbers, or a list of Python's own values."""
    if isinstance(column, np.ndarray) and column.ndim != 1:
        raise UnusableRowError(f"a column has {column.ndim} dimensions, not one")
    if isinstance(column, np.ndarray) and column.dtype.kind in "biuf":
        return column
    if hasattr(column, "to_pylist"):  # pyarrow
        cells: Cells = column.to_pylist()
    elif hasattr(column, "to_list"):  # pandas, polars
        cells = column.to_list()
    else:
        cells = column.tolist() if isinstance(column, np.ndarray) else list(column)
    return cells
