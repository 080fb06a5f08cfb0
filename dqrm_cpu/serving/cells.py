"""Cells of raw rows, as Python or NumPy hold them, to numbers and keys: what `prepare` makes of the same text."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.errors import DqrmError
from dqrm_cpu.kernels.hashing import FACTOR_1, FACTOR_2, INCREMENT
from dqrm_cpu.serving.description import (
    BUCKETS,
    HEX,
    IDENTITY,
    INTEGER,
    LOG,
    QUANTILE,
    STANDARD,
    CategoryColumn,
    NumberColumn,
)

Cells: TypeAlias = Sequence[Any] | NDArray[Any]

# One way to read each text: a long one that is no number is refused in a time that grows with its length alone.
_NUMBER = re.compile(r"-?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?", re.ASCII)
_WHOLE_WITH_POINT = re.compile(r"-?[0-9]+\.0+", re.ASCII)
_NUMBER_LINES = re.compile(rf"(?:{_NUMBER.pattern})?(?:\n(?:{_NUMBER.pattern})?)*+", re.ASCII)
_HEX = re.compile(r"[0-9a-fA-F]{1,8}", re.ASCII)
_HEX_LINES = re.compile(r"[0-9a-fA-F]{0,8}(?:\n[0-9a-fA-F]{0,8})*+", re.ASCII)
_FEW_CELLS = 4
"""Cells of a column that are cheaper one by one than all at once."""

_TRUTH = {"true": 1.0, "false": 0.0}
_LONGEST_WORD = max(map(len, _TRUTH))
"""No text that is longer and has no point stands for something else."""

_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)
_LARGEST_INT32 = 2**31

_INCREMENT, _FACTOR_1, _FACTOR_2 = (np.uint64(word) for word in (INCREMENT, FACTOR_1, FACTOR_2))


class UnusableRowError(DqrmError):
    """A row that is to be scored has a value that cannot be; `row` is its place among the rows, `column` its name."""

    def __init__(self, why: str, row: int | None = None, column: str | None = None) -> None:
        places = [*([] if row is None else [f"row {row}"]), *([] if column is None else [f"column {column}"])]
        super().__init__(f"{', '.join(places)}: {why}" if places else why)
        self.row, self.column = row, column


def read_numbers(columns: Sequence[NumberColumn], cells: Iterable[Cells]) -> NDArray[np.float64]:
    """Returns f64[columns, n], NaN for what is missing; UnusableRowError for what is no number."""
    read: list[Cells] = []
    found = []
    for column, its in zip(columns, cells, strict=True):
        read.append(its)
        found.append(_numbers(column, its))
    values = np.array(found, np.float64)
    bad = np.isinf(values)
    whole = np.array([column.kind == INTEGER for column in columns])
    if whole.any():
        integers = values[whole]
        off = (integers != np.trunc(integers)) & ~np.isnan(integers)
        bad[whole] |= off | (integers < -_LARGEST_INT32) | (integers >= _LARGEST_INT32)
    if bad.any():
        k, row = np.argwhere(bad)[0].tolist()
        what = "a whole number of 32 bits" if columns[k].kind == INTEGER else "a finite number"
        raise UnusableRowError(f"{str(read[k][row])[:40]!r} is not {what}", row, columns[k].name)
    return values


def _numbers(column: NumberColumn, cells: Cells) -> NDArray[np.float64] | list[float]:
    if isinstance(cells, np.ndarray) and cells.dtype.kind in "biuf":
        return cells.astype(np.float64)
    if len(cells) > _FEW_CELLS and (texts := _lines_of(cells, _NUMBER_LINES)) is not None:
        return [float(text or "nan") for text in texts]
    return [_number(cell, k, column.name) for k, cell in enumerate(cells)]


def _lines_of(cells: Cells, form: re.Pattern[str]) -> Cells | None:
    """Returns the cells where all of them are texts of this form, or empty; else None: they are taken one by one."""
    try:
        joined = "\n".join(cells)
    except TypeError:
        return None
    return cells if joined.count("\n") == len(cells) - 1 and form.fullmatch(joined) else None


def _number(cell: Any, row: int, column: str) -> float:
    if type(cell) is str and cell.isascii() and cell.isdecimal():
        return float(cell)
    if cell is None:
        return np.nan
    if isinstance(cell, np.generic):
        cell = cell.item()
    if isinstance(cell, bool | int | float):
        return float(cell) if abs(cell) < 1e300 or cell != cell else np.inf
    if isinstance(cell, str):
        if _is_missing(cell):
            return np.nan
        if cell.lower() in _TRUTH:
            return _TRUTH[cell.lower()]
        if _NUMBER.fullmatch(cell):
            return float(cell)
    if _is_null(cell):
        return np.nan
    raise UnusableRowError(f"{str(cell)[:40]!r} is not a number", row, column)


def _is_missing(text: str) -> bool:
    return not text or text == "\\N" or (len(text) < 5 and text.lower() in ("nan", "null"))


def _is_null(cell: Any) -> bool:
    """Tells whether a cell is one of the objects that stand for nothing: pandas.NA, NaT."""
    return type(cell).__name__ in ("NAType", "NaTType")


def dense_values(columns: Sequence[NumberColumn], values: NDArray[np.float64]) -> NDArray[np.float32]:
    """Returns what the model reads, f32[columns, n], of numbers as they are read."""
    if all(column.transform == LOG for column in columns):
        return _log(values, np.empty(0)).astype(np.float32)
    dense = np.empty(values.shape, np.float32)
    for k, column in enumerate(columns):
        dense[k] = _TRANSFORMS[column.transform](values[k], np.array(column.numbers))
    return dense


def bucket_ids(column: NumberColumn, values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Returns the bucket of each number, from 1 on, and 0 where it is missing: int64[n]."""
    ids = 1 + np.searchsorted(np.array(column.numbers), _rounded(values), side="right")
    return np.where(np.isnan(values), 0, ids)


def _rounded(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rounds to float32, as which `prepare` keeps numbers until their transform is known."""
    limited: NDArray[np.float64] = (
        values.clip(-_LARGEST_FLOAT32, _LARGEST_FLOAT32).astype(np.float32).astype(np.float64)
    )
    return limited


def _log(values: NDArray[np.float64], _: NDArray[np.float64]) -> NDArray[np.float64]:
    known: NDArray[np.float64] = np.log1p(np.fmax(values, 0.0))  # of NaN and 0: 0
    return known


def _identity(values: NDArray[np.float64], _: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.nan_to_num(_rounded(values), nan=0.0)


def _standard(values: NDArray[np.float64], numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(over="ignore"):
        scaled = (_rounded(values) - numbers[0]) / numbers[1]
    limited: NDArray[np.float64] = np.nan_to_num(scaled, nan=0.0).clip(-_LARGEST_FLOAT32, _LARGEST_FLOAT32)
    return limited


def _quantile(values: NDArray[np.float64], knots: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns each number's rank, 0 to 1; of one that several quantiles share, the middle of them. Missing: 0.5."""
    values, ranks = _rounded(values), np.linspace(0.0, 1.0, knots.size)
    below = (np.searchsorted(knots, values, "right") - 1).clip(0, knots.size - 1)
    above = np.searchsorted(knots, values, "left").clip(0, knots.size - 1)
    width = knots[above] - knots[below]
    share = np.divide(values - knots[below], width, out=np.full(values.size, 0.5), where=width > 0)
    found = ranks[below] + (ranks[above] - ranks[below]) * share.clip(0.0, 1.0)
    return np.where(np.isnan(values), 0.5, found)


_TRANSFORMS: Mapping[str, Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]] = {
    LOG: _log,
    IDENTITY: _identity,
    STANDARD: _standard,
    QUANTILE: _quantile,
    BUCKETS: _identity,
}


def read_keys(columns: Sequence[CategoryColumn], cells: Iterable[Cells]) -> NDArray[np.uint64]:
    """Returns the key of each category, uint64[columns, n], 0 where it is missing."""
    of_hashes: dict[str, list[int]] = {}
    texts: list[bytes] = []
    for column, its in zip(columns, cells, strict=True):
        if column.kind == HEX:
            of_hashes[column.name] = _hex_keys(column, its)
        else:
            texts += [_text(cell, row, column.name) for row, cell in enumerate(its)]
    of_texts = iter(_text_keys(texts).reshape(max(1, len(columns) - len(of_hashes)), -1))
    keys = [of_hashes[column.name] if column.kind == HEX else next(of_texts) for column in columns]
    return np.array(keys, np.uint64)


def _hex_keys(column: CategoryColumn, cells: Cells) -> list[int]:
    if len(cells) > _FEW_CELLS and (texts := _lines_of(cells, _HEX_LINES)) is not None:
        return [int(text, 16) if text else 0 for text in texts]
    return [_hex_key(cell, k, column.name) for k, cell in enumerate(cells)]


def read_bags(column: CategoryColumn, cells: Cells) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint64]]:
    """Returns the keys of the values of all cells, and the row and the place in its cell of each, int64[N].

    Values that are missing or there already are left out, and those beyond the limit.
    """
    texts, rows = [], []
    for row, cell in enumerate(cells):
        parts = [text for part in _parts(column, cell, row) if (text := _text(_stripped(part), row, column.name))]
        texts += parts
        rows += [row] * len(parts)
    kept_rows, places, kept = [], [], []
    seen: set[tuple[int, int]] = set()
    count, last = 0, -1
    for row, key in zip(rows, _text_keys(texts).tolist(), strict=True):
        count, last = (count if row == last else 0), row
        if (row, key) not in seen and count < column.limit:
            kept_rows.append(row)
            places.append(count)
            kept.append(key)
            count += 1
        seen.add((row, key))
    return np.array(kept_rows, np.int64), np.array(places, np.int64), np.array(kept, np.uint64)


def _parts(column: CategoryColumn, cell: Any, row: int) -> Sequence[Any]:
    """Returns the values of a bag as they stand in a cell."""
    if cell is None or _is_null(cell) or (isinstance(cell, float | np.floating) and cell != cell):
        return ()
    if isinstance(cell, list | tuple | set | frozenset):
        return tuple(cell)
    if isinstance(cell, np.ndarray):
        parts: list[Any] = cell.tolist()
        return parts
    if isinstance(cell, bytes):
        cell = cell.decode("utf-8", "surrogateescape")
    if isinstance(cell, str) and (column.separator or _is_missing(cell)):
        return cell.split(column.separator) if column.separator else ()
    if column.separator:
        return (cell,)
    raise UnusableRowError(f"{str(cell)[:40]!r} is no list of values", row, column.name)


def _stripped(value: Any) -> Any:
    return value.strip(" ") if isinstance(value, str) else value


def _hex_key(cell: Any, row: int, column: str) -> int:
    if type(cell) is str and _HEX.fullmatch(cell):
        return int(cell, 16)
    if isinstance(cell, np.generic):
        cell = cell.item()
    if isinstance(cell, int) and not isinstance(cell, bool) and 0 <= cell < 1 << 32:
        return cell
    text = _text(cell, row, column).decode("utf-8", "replace")
    if not text:
        return 0
    if not isinstance(cell, str) or not _HEX.fullmatch(text):
        raise UnusableRowError(f"{text[:40]!r} is not a hash of 1 to 8 hexadecimal digits", row, column)
    return int(text, 16)


def _text(cell: Any, row: int, column: str) -> bytes:
    """Returns the text of a category, b"" where it is missing; what programs write differently is the same."""
    if isinstance(cell, str):
        if len(cell) > _LONGEST_WORD and "." not in cell:
            return cell.encode("utf-8", "surrogateescape")
        text = cell
    elif cell is None or _is_null(cell) or (isinstance(cell, float | np.floating) and cell != cell):
        return b""
    elif isinstance(cell, bytes):
        text = cell.decode("utf-8", "surrogateescape")
    elif isinstance(cell, bool | int | float | np.generic):
        text = str(cell)
    else:
        raise UnusableRowError(f"a value of the type {type(cell).__name__} is no category", row, column)
    if _is_missing(text):
        return b""
    if text.lower() in _TRUTH:
        text = text.lower()
    elif _WHOLE_WITH_POINT.fullmatch(text):
        text = text[: text.index(".")]
    return text.encode("utf-8", "surrogateescape")


def _text_keys(texts: Sequence[bytes]) -> NDArray[np.uint64]:
    """Hashes texts to 64 bits, never 0 but for an empty one: a round of splitmix64 for every 8 bytes, and one more."""
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    words = -(-lengths // 8)
    padded = b"".join(text.ljust(int(count) * 8, b"\0") for text, count in zip(texts, words, strict=True))
    content, first = np.frombuffer(padded, "<u8"), np.cumsum(words) - words
    hashed = _INCREMENT ^ lengths.astype(np.uint64)
    for k in range(int(words.max(initial=0))):
        longer = words > k
        hashed[longer] = _mixed(hashed[longer] ^ content[first[longer] + k])
    hashed = _mixed(hashed)
    hashed[hashed == 0] = 1
    hashed[lengths == 0] = 0
    return hashed


def _mixed(word: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Returns the finalizer of splitmix64."""
    word = (word ^ (word >> np.uint64(30))) * _FACTOR_1
    word = (word ^ (word >> np.uint64(27))) * _FACTOR_2
    result: NDArray[np.uint64] = word ^ (word >> np.uint64(31))
    return result
