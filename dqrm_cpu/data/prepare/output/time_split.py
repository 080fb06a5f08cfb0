"""The split by time: rows from one time on validate, those from another on test, whatever their order in the sources.

The time of a row travels with it through the spool, as two floats whose sum it is. Once all rows are read, one pass
over the spool finds how many rows of each part every file has.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.data.prepare.output.split import Split
from dqrm_cpu.data.prepare.records import NUM_BINS, place_rows
from dqrm_cpu.data.prepare.request import TimeSplit
from dqrm_cpu.data.prepare.row_layout import Layout
from dqrm_cpu.data.prepare.spool import SpoolFile, read_records
from dqrm_cpu.errors import DataError

SAMPLE_ROWS = 1 << 18
"""Of more rows, shares are found by a sample of these: right to a tenth of a percent of the rows."""

TRAIN, VALIDATION, TEST = 0, 1, 2
_NUMBERS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}

_LARGEST_SECONDS = 1e11
_UNITS = (1.0, 1e3, 1e6, 1e9)
"""How many of the numbers that count time make a second."""


class TimePoints(NamedTuple):
    """From which times on rows validate and test; infinity where there are to be none."""

    validation: float
    test: float

    def parts(self, times: NDArray[np.float64]) -> NDArray[np.int8]:
        """Returns the part of each row: TRAIN, VALIDATION or TEST."""
        return np.where(times >= self.test, TEST, np.where(times >= self.validation, VALIDATION, TRAIN)).astype(np.int8)


def times_of(layout: Layout, records: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Returns the times of records, float64[n]."""
    high = layout.raw.num_dense - 2
    pair = np.ascontiguousarray(records[:, high : high + 2]).view(np.float32).astype(np.float64)
    return pair[:, 0] + pair[:, 1]


@dataclass(frozen=True)
class TimeParts:
    """Which rows of the spool belong to which part."""

    layout: Layout
    points: TimePoints
    counts: tuple[NDArray[np.int64], ...]  # of each file [3, NUM_BINS]: rows by part and bin

    @property
    def split(self) -> Split:
        """The number of rows of each part."""
        train, validation, test = (sum(int(counts[part].sum()) for counts in self.counts) for part in range(3))
        return Split(train, test, validation)

    def rows_of(self, file: int, part: str) -> int:
        """Returns how many rows of a file belong to a part."""
        return int(self.counts[file][_NUMBERS[part]].sum())

    def chosen(self, records: NDArray[np.uint32], part: str) -> NDArray[np.bool_]:
        """Tells which records belong to a part."""
        chosen: NDArray[np.bool_] = self.points.parts(times_of(self.layout, records)) == _NUMBERS[part]
        return chosen


def find_parts(files: Sequence[SpoolFile], layout: Layout, settings: TimeSplit, seed: int) -> TimeParts:
    """Splits the rows of the spool by time; DataError where a part would be empty or the order is not as asked for."""
    points = _points(files, layout, settings)
    counts, latest = [], -np.inf
    for file in files:
        records = _records(file, 0, NUM_BINS)
        times = times_of(layout, records)
        parts = points.parts(times)
        bins = np.repeat(np.arange(NUM_BINS), np.diff(file.bounds))
        by_bin = np.bincount(parts.astype(np.int64) * NUM_BINS + bins, minlength=3 * NUM_BINS)
        counts.append(by_bin.reshape(3, NUM_BINS).astype(np.int64))
        if settings.order == "time" and file.header.rows:
            in_order = np.concatenate([[latest], times[_places(file, seed)]])
            _require_order(in_order, file)
            latest = float(in_order[-1])
    found = TimeParts(layout, points, tuple(counts))
    split = found.split
    wanted = [name for name in ("validation", "test") if getattr(settings, name) is not None]
    for name in ("train", *wanted):
        if not getattr(split, name):
            raise DataError(
                f"split by {settings.column}, there are no {name} rows ({split.train:,} train, {split.validation:,} "
                f"validation, {split.test:,} test); check the times in [split]"
            )
    return found


def _require_order(times: NDArray[np.float64], file: SpoolFile) -> None:
    earlier = np.flatnonzero(np.diff(times) < 0)
    if earlier.size:
        raise DataError(
            f"row {file.header.first_row + int(earlier[0]) + 1:,} has an earlier time than the one before it; "
            'order = "time" keeps the order of sources that are sorted: sort them, or leave it out'
        )


def _places(file: SpoolFile, seed: int) -> NDArray[np.int64]:
    """Returns where each row of a file lies among its records, which are by bin."""
    places = np.empty(file.header.rows, np.int32)
    place_rows(np.uint64(seed), file.header.first_row, np.zeros(NUM_BINS + 1, np.int64), places)
    return places.astype(np.int64)


def _records(file: SpoolFile, first_bin: int, last_bin: int) -> NDArray[np.uint32]:
    low, high = int(file.bounds[first_bin]), int(file.bounds[last_bin])
    records = np.empty((high - low, file.header.width), np.uint32)
    read_records(file, low, records)
    return records


def _points(files: Sequence[SpoolFile], layout: Layout, settings: TimeSplit) -> TimePoints:
    total = sum(file.header.rows for file in files)
    last = min(NUM_BINS, -(-NUM_BINS * SAMPLE_ROWS // max(total, 1)))
    sample = np.sort(np.concatenate([times_of(layout, _records(file, 0, last)) for file in files]))
    validation, test = settings.validation, settings.test
    if settings.are_shares:
        share_of_test = test or 0.0
        of_validation = None if validation is None else _value_at(sample, share_of_test + validation)
        return TimePoints(
            np.inf if of_validation is None else of_validation, np.inf if test is None else _value_at(sample, test)
        )
    unit = 1.0
    if settings.are_dates:
        unit = next((one for one in _UNITS if sample.size == 0 or abs(sample[-1]) / one < _LARGEST_SECONDS), 1.0)
    return TimePoints(*(np.inf if point is None else _as_stored(point * unit) for point in (validation, test)))


def _as_stored(time: float) -> float:
    """Returns a time as records hold it, without the last bits of nanoseconds: rows of the same time are not before."""
    high = np.float32(time)
    return float(high) + float(np.float32(time - float(high)))


def _value_at(sample: NDArray[np.float64], share: float) -> float:
    """Returns the time from which on about this share of the rows lies."""
    return float(sample[min(sample.size - 1, round(sample.size * (1 - share)))])
