"""Days of a click log as a program writes them, made up: what the walk from a log to tomorrow's model can be tried on.

Each day some users and items are new and as many have gone, and what makes people click drifts slowly. Cells are
missing, balances negative, tags several in a cell, and about one row in five hundred is none. A day depends on the
seed, its number and its number of rows alone.
"""

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.base.files import remove_abandoned, replace_file
from dqrm_cpu.errors import ConfigError, DataError

FIELDS = ("time", "request", "user", "item", "site", "device", "price", "balance", "age", "tags", "click")

_FIRST_DAY = datetime(2026, 3, 1, tzinfo=UTC)
_ROWS_AT_ONCE = 10_000
_BAD_EVERY = 500
_DRIFT = 0.25
"""Radians a day by which the effect of a category moves on its own circle."""


class _Category(NamedTuple):
    """A column of categories: how many are in use on a day, the share that is new on the next, how much they say."""

    name: str
    width: int
    renewed: float
    strength: float


_CATEGORIES = (
    _Category("user", 500, 0.15, 0.9),
    _Category("item", 150, 0.15, 1.2),
    _Category("site", 40, 0.0, 0.5),
    _Category("device", 5, 0.0, 0.3),
)
_TAGS = _Category("tag", 50, 0.0, 0.5)
_MOST_TAGS = 3
_BIAS = -1.2


class DailyLog:
    """An endless log of clicks by day, counted from 1, each of as many rows."""

    def __init__(self, rows_of_day: int, seed: int) -> None:
        self.rows_of_day = rows_of_day
        self._seed = seed

    def text(self, day: int) -> Iterator[bytes]:
        """Yields the lines of a day, its header first."""
        yield (",".join(FIELDS) + "\n").encode()
        for start in range(0, self.rows_of_day, _ROWS_AT_ONCE):
            yield self._lines(day, start, min(start + _ROWS_AT_ONCE, self.rows_of_day))

    def _lines(self, day: int, start: int, stop: int) -> bytes:
        count = stop - start
        random = np.random.default_rng([self._seed, day, start])
        balance = random.normal(100, 250, count)
        price, age = random.lognormal(2, 1, count), random.integers(16, 80, count)
        logits = _BIAS + 0.8 * np.tanh(balance / 250) - 0.2 * np.log(price) + 0.01 * (age - 48)
        columns = []
        for category in _CATEGORIES:
            ids = self._ids(category, day, random.random(count))
            logits += self._effects(category, day, ids)
            columns.append([f"{category.name[0]}{number}" for number in ids])
        tags = self._ids(_TAGS, day, random.random((count, _MOST_TAGS)))
        is_there = np.arange(_MOST_TAGS) < random.integers(0, _MOST_TAGS + 1, count)[:, None]
        logits += (self._effects(_TAGS, day, tags) * is_there).sum(axis=1)
        clicks = random.random(count) < 1 / (1 + np.exp(-logits))
        seconds = ((start + np.arange(count)) * (86_400 / self.rows_of_day)).astype(np.int64)
        cells = zip(
            [f"{_FIRST_DAY + timedelta(days=day - 1, seconds=int(second)):%Y-%m-%dT%H:%M:%S}" for second in seconds],
            [f"{day}-{number}" for number in range(start + 1, stop + 1)],
            *columns,
            _with_gaps([f"{value:.2f}" for value in price], random, 0.03),
            [f"{value:.2f}" for value in balance],
            _with_gaps([str(value) for value in age], random, 0.2),
            ["|".join(f"t{tag}" for tag in row[there]) for row, there in zip(tags, is_there, strict=True)],
            ["1" if click else "0" for click in clicks],
            strict=True,
        )
        lines = [",".join(row) for row in cells]
        for number in np.flatnonzero(random.random(count) < 1 / _BAD_EVERY):
            lines[number] = _spoiled(lines[number], int(random.integers(3)))
        return ("\n".join(lines) + "\n").encode()

    def _ids(self, category: _Category, day: int, drawn: NDArray[np.float64]) -> NDArray[np.int64]:
        """Chooses categories of a day: squared, so that some are frequent, which are not those that are the newest."""
        place = (drawn**1.5 * category.width).astype(np.int64)
        return int(day * category.renewed * category.width) + place * 7919 % category.width

    def _effects(self, category: _Category, day: int, ids: NDArray[np.int64]) -> NDArray[np.float64]:
        stream = [self._seed, *category.name.encode()]
        phases = np.random.default_rng(stream).random(int(ids.max(initial=0)) + 1)
        angles = 2 * np.pi * phases[ids] + _DRIFT * day
        return np.asarray(category.strength * np.sqrt(2) * np.cos(angles))


def write_days(
    log: DailyLog, folder: Path, days: int, advance: Callable[[int], None] | None = None
) -> tuple[list[Path], int]:
    """Writes day-1.csv and so on; days that are there already must be the very same. Returns files and bytes.

    `advance` hears of rows.
    """
    folder.mkdir(exist_ok=True)
    paths = [folder / f"day-{day}.csv" for day in range(1, days + 1)]
    for day, path in enumerate(paths, start=1):
        remove_abandoned(path)
        if not path.exists():
            replace_file(path, log.text(day), DataError)
        elif not _is(path, log.text(day)):
            raise ConfigError(f"{path} is there already, and holds other rows; give another folder")
        if advance is not None:
            advance(log.rows_of_day)
    return paths, sum(path.stat().st_size for path in paths)


def _is(path: Path, pieces: Iterator[bytes]) -> bool:
    with path.open("rb") as file:
        return all(file.read(len(piece)) == piece for piece in pieces) and not file.read(1)


def _with_gaps(cells: Sequence[str], random: np.random.Generator, share: float) -> list[str]:
    """Leaves out a share of the cells."""
    return ["" if gone else cell for cell, gone in zip(cells, random.random(len(cells)) < share, strict=True)]


def _spoiled(line: str, how: int) -> str:
    """Cuts a line short, gives it a field too many, or a label that is none."""
    return (line[: len(line) // 2], f"{line},0", f"{line[:-1]}?")[how]
