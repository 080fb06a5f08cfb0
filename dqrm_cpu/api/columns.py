"""The features of a classifier: which columns are numbers and which categories, and both as `prepare` reads them."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dqrm_cpu.api.frames import arrow_table
from dqrm_cpu.data.prepare.suggest import is_code
from dqrm_cpu.errors import DataError

NUMBER, CATEGORY, TAGS = "number", "category", "tags"
_WHOLE, _BROKEN = ("int", "uint"), ("float", "double", "halffloat", "decimal")
_LIST = ("list", "large_list", "fixed_size_list")
_TEXT = ("string", "large_string", "string_view", "binary", "large_binary", "dictionary", "bool", "null")


class InputError(DataError, ValueError):
    """Rows that were given to a classifier are not what it takes."""


@dataclass(frozen=True)
class Feature:
    """One column of the rows: what it is, and the name that it has in the data set."""

    name: str
    kind: str  # number, category, or tags: any number of categories in a row
    transform: str = "log"  # of a number


@dataclass(frozen=True)
class RowTable:
    """Rows as a pyarrow.Table, and whether they came with names of columns."""

    table: Any
    is_named: bool

    @property
    def names(self) -> list[str]:
        return list(self.table.column_names)


def row_table(X: Any) -> RowTable:
    """Reads rows: a DataFrame, whatever else `dqrm_cpu.predict` takes, or an array [N, columns], named x0, x1, ..."""
    if hasattr(X, "toarray"):
        raise InputError("X is a sparse matrix, which has no columns of their own; give a DataFrame or X.toarray()")
    if isinstance(X, np.ndarray) or (isinstance(X, list | tuple) and not (X and isinstance(X[0], dict))):
        return RowTable(_of_array(np.asarray(X)), False)
    table = arrow_table(X, "X")
    names = list(table.column_names)
    if len(set(names)) < len(names):
        raise InputError("X has two columns of the same name; rename one")
    _require_rows(table)
    return RowTable(table, all(isinstance(name, str) for name in getattr(X, "columns", names)))


def _of_array(array: "np.ndarray[Any, Any]") -> Any:
    if array.ndim != 2:
        raise InputError(
            f"Expected 2D array, got {array.ndim}D array instead: X has a row per example and a column per feature. "
            "Reshape your data using X.reshape(-1, 1) if it has one feature, X.reshape(1, -1) if it is one row"
        )
    if array.dtype.kind == "c":
        raise InputError("Complex data not supported: X holds complex numbers; give their parts as columns")
    names = [f"x{number}" for number in range(array.shape[1])]
    table = arrow_table({name: _cells(column) for name, column in zip(names, array.T, strict=True)}, "X")
    _require_rows(table)
    return table


def _cells(column: "np.ndarray[Any, Any]") -> Any:
    """Returns what Arrow takes for a column; of objects their numbers or texts."""
    return column.tolist() if column.dtype.kind in "OUS" else np.ascontiguousarray(column)


def _require_rows(table: Any) -> None:
    if not table.num_columns:
        raise InputError("0 feature(s) (shape=(n, 0)) while a minimum of 1 is required: X has no columns")
    if not table.num_rows:
        raise InputError("Found array with 0 sample(s): X has no rows, and a minimum of 1 is required")


def choose_features(
    rows: Any,
    categories: Sequence[str] | None,
    numbers: Sequence[str] | None,
    integers: str,
    transform: str,
) -> tuple[Feature, ...]:
    """Says what each column of a pyarrow.Table is.

    `categories` and `numbers` name columns that are so, columns of lists are tags. Of the others floating-point numbers
    are numbers, texts and booleans categories, and whole numbers either, by `integers`: numbers, categories, or auto
    for what `prepare --suggest` would say. The transform `auto` is log, or standard of a column with negative numbers.
    """
    lists = [name for name, column in zip(rows.column_names, rows.columns, strict=True) if _is_list(column)]
    known = {**dict.fromkeys(categories or (), CATEGORY), **dict.fromkeys(numbers or (), NUMBER)}
    for name in known:
        if name not in rows.column_names:
            raise InputError(f"X has no column {name!r}, which is named among categories or numbers")
        if name in (categories or ()) and name in (numbers or ()):
            raise InputError(f"column {name!r} is named among categories and numbers; leave it in one")
    known |= dict.fromkeys(lists, TAGS)
    return tuple(
        _feature(name, column, known.get(name) or _kind(name, column, integers), transform)
        for name, column in zip(rows.column_names, rows.columns, strict=True)
    )


def _feature(name: str, column: Any, kind: str, transform: str) -> Feature:
    if kind != NUMBER:
        return Feature(name, kind)
    if transform != "auto":
        return Feature(name, kind, transform)
    values = _numbers(name, column).to_numpy(zero_copy_only=False)
    return Feature(name, kind, "standard" if (values < 0).any() else "log")


def _kind(name: str, column: Any, integers: str) -> str:
    kind = str(column.type)
    if kind.startswith(_BROKEN):
        return NUMBER
    if kind.startswith(_TEXT):
        return CATEGORY
    if not kind.startswith(_WHOLE):
        raise InputError(f"column {name} holds {kind}; make numbers or categories of it, or leave it out")
    if integers != "auto":
        return NUMBER if integers == "numbers" else CATEGORY
    distinct = len(column.unique()) - (1 if column.null_count else 0)
    return CATEGORY if is_code(name, distinct, len(column)) else NUMBER


def feature_columns(rows: Any, features: Sequence[Feature]) -> dict[str, Any]:
    """Returns the columns of a pyarrow.Table as the data set has them: numbers as float64, categories as texts."""
    return {
        feature.name: _READERS[feature.kind](feature.name, rows.column(place)) for place, feature in enumerate(features)
    }


def _numbers(name: str, column: Any) -> Any:
    arrow = importlib.import_module("pyarrow")
    try:
        if str(column.type).startswith("dictionary"):
            column = column.cast(column.type.value_type)
        column = column.cast("int8") if str(column.type) == "bool" else column
        values = column.cast("float64", safe=False).combine_chunks()
    except (arrow.ArrowException, ValueError) as error:
        raise InputError(f"column {name} is to hold numbers: {error}") from None
    found = values.to_numpy(zero_copy_only=False)
    if np.isinf(found).any():
        raise InputError(f"column {name} holds infinity; replace it by a number, or by NaN where it is not known")
    return values


def _is_list(column: Any) -> bool:
    return str(column.type).startswith(_LIST)


def _lists(name: str, column: Any) -> Any:
    arrow = importlib.import_module("pyarrow")
    try:
        if not _is_list(column):
            raise InputError(f"column {name} is to hold lists of categories, and it holds {column.type}")
        return column.cast(arrow.large_list(arrow.large_string())).combine_chunks()
    except arrow.ArrowException as error:
        raise InputError(f"column {name} is to hold lists of categories: {error}") from None


def _texts(name: str, column: Any) -> Any:
    arrow = importlib.import_module("pyarrow")
    try:
        if str(column.type).startswith("dictionary"):
            column = column.cast(column.type.value_type)
        return column.cast("large_string").combine_chunks()
    except (arrow.ArrowException, ValueError) as error:
        raise InputError(f"column {name} is to hold categories: {error}") from None


_READERS = {NUMBER: _numbers, CATEGORY: _texts, TAGS: _lists}
