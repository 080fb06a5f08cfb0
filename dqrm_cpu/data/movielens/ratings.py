"""MovieLens-100k as click data: a rating of 4 or 5 is a click, rows in the order of time, genres a bag.

Columns: user, item, age (in years), gender, occupation, hour (UTC) and genres, each with a table; dense are log(x + 1)
of the user's age and of the film's age in 1998, when the ratings end.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.data.store.schema import Schema
from dqrm_cpu.errors import DataError

SCHEMA = Schema(("age", "film_age"), ("user", "item", "age_years", "gender", "occupation", "hour", "genres"))

_CLICK = 4.0
_LAST_YEAR = 1998
_HOUR_S = 3600
_HOURS = 24


@dataclass(frozen=True)
class Ratings:
    """All rows, oldest first. Single ids int32[6, N] in the order of the schema; genres as a bag a row."""

    label: NDArray[np.uint8]
    dense: NDArray[np.float32]
    ids: NDArray[np.int32]
    genres: tuple[tuple[int, ...], ...]
    table_rows: tuple[int, ...]

    def in_order(self, rows: NDArray[np.int64]) -> Self:
        """Returns these rows, in this order."""
        genres = tuple(self.genres[row] for row in rows)
        return replace(self, label=self.label[rows], dense=self.dense[rows], ids=self.ids[:, rows], genres=genres)

    def bags(self) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Returns ids int32[M] and offsets int64[7 N + 1], table by table."""
        single = self.ids.size
        ends = np.fromiter(accumulate(map(len, self.genres)), np.int64, len(self.genres)) + single
        genres = np.fromiter((genre for bag in self.genres for genre in bag), np.int32)
        return np.concatenate([self.ids.reshape(-1), genres]), np.concatenate([np.arange(single + 1), ends])


def read_ratings(files: Mapping[str, Path]) -> Ratings:
    """Reads the ratings out of the three files, inter, item and user."""
    user, item, rating, time = read_columns(files["inter"], ("user_id", "item_id", "rating", "timestamp"))
    seconds = np.array(time, dtype=np.float64).astype(np.int64)
    order = np.argsort(seconds, kind="stable")
    users = _by_id(files["user"], "user_id", ("age", "gender", "occupation"))
    items = _by_id(files["item"], "item_id", ("release_year", "class"))
    of_user = [_known(users, user[row], files["user"]) for row in order]
    of_item = [_known(items, item[row], files["item"]) for row in order]
    ages = [int(cells[0]) for cells in of_user]
    columns = [
        _numbered([user[row] for row in order]),
        _numbered([item[row] for row in order]),
        np.array(ages, np.int32),
        *(_numbered([cells[place] for cells in of_user]) for place in (1, 2)),
        (seconds[order] // _HOUR_S % _HOURS).astype(np.int32),
    ]
    genres, num_genres = _bags([cells[1].split() for cells in of_item])
    return Ratings(
        label=(np.array(rating, dtype=np.float64)[order] >= _CLICK).astype(np.uint8),
        dense=np.log1p(np.array([ages, [_film_age(cells[0]) for cells in of_item]], np.float32)).T.copy(),
        ids=np.stack(columns),
        genres=genres,
        table_rows=(*(int(column.max()) + 1 for column in columns), num_genres),
    )


def _by_id(path: Path, key: str, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    keys, *columns = read_columns(path, (key, *names))
    return dict(zip(keys, zip(*columns, strict=True), strict=True))


def _known(rows: Mapping[str, tuple[str, ...]], key: str, path: Path) -> tuple[str, ...]:
    if key not in rows:
        raise DataError(f"{path} does not know {key}, which has ratings; the files are not of one data set")
    return rows[key]


def _film_age(year: str) -> int:
    """Computes the age of a film; 0 where the year is not given."""
    return max(_LAST_YEAR - int(year), 0) if year.isdigit() else 0


def _numbered(values: Iterable[str]) -> NDArray[np.int32]:
    """Ids by first appearance, so that they do not depend on how the files number things."""
    ids: dict[str, int] = {}
    return np.array([ids.setdefault(value, len(ids)) for value in values], np.int32)


def _bags(rows: Sequence[Sequence[str]]) -> tuple[tuple[tuple[int, ...], ...], int]:
    ids: dict[str, int] = {}
    bags = tuple(tuple(ids.setdefault(genre, len(ids)) for genre in row) for row in rows)
    return bags, max(len(ids), 1)


def read_columns(path: Path, names: Sequence[str]) -> list[list[str]]:
    """Reads the named columns of one of RecBole's atomic files, in that order, each a list of cells.

    Such a file has a head of name:type cells, then rows, with tabs between cells.
    """
    head, *lines = path.read_text(encoding="utf-8").splitlines() or [""]
    there = [cell.partition(":")[0] for cell in head.split("\t")]
    missing = [name for name in names if name not in there]
    if missing:
        raise DataError(f"{path}: no column {missing[0]}; it has {', '.join(there)}, so it is of another data set")
    places = [there.index(name) for name in names]
    columns: list[list[str]] = [[] for _ in names]
    for number, line in enumerate(lines, start=2):
        cells = line.split("\t")
        if len(cells) != len(there):
            raise DataError(f"{path}:{number}: {len(cells)} cells, the head names {len(there)}; copy the file again")
        for column, place in zip(columns, places, strict=True):
            column.append(cells[place])
    return columns
