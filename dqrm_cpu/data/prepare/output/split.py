"""The split into training, test and validation rows, and into shards of each part (paper: last day held out).

The held-out rows are halved as DLRM does it: the first half, the larger one if their number is odd, is the test part,
the rest validates. They keep their order; training rows are shuffled.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.data.prepare.protocols import RandomSplit
from dqrm_cpu.data.prepare.records import NUM_BINS
from dqrm_cpu.errors import DataError

_DAYS = 7


@dataclass(frozen=True)
class Split:
    """The numbers of rows of each part: rows 0 to train - 1 are for training, then come test and validation."""

    train: int
    test: int
    validation: int


@dataclass(frozen=True)
class ShardJob:
    """One shard to write: bins first to last - 1 of the training rows, or rows first to last - 1 in their order.

    Where chance decides, the bins are those of the job's part.

    Rows are counted over all of them, or over those of the part where time decides.
    """

    name: str
    part: str
    number: int
    first: int
    last: int
    in_order: bool = False


@dataclass(frozen=True)
class BinSplit:
    """The bins of each part where chance decides: training rows have the first ones, test rows the last ones.

    A row's bin depends on the seed and its number alone, and so does its part.
    """

    train: int  # bins
    validation: int

    @classmethod
    def of(cls, shares: RandomSplit) -> Self:
        """Returns the split whose shares are nearest to these."""
        validation, test = (round(NUM_BINS * share) for share in (shares.validation, shares.test))
        return cls(NUM_BINS - validation - test, validation)

    @property
    def parts(self) -> dict[str, tuple[int, int]]:
        """The first bin of each part, and the one behind its last."""
        held_out = self.train + self.validation
        return {"train": (0, self.train), "validation": (self.train, held_out), "test": (held_out, NUM_BINS)}

    def split(self, bounds: Sequence[NDArray[np.int64]]) -> Split:
        """Counts the rows of each part, given where each bin begins in every file: int64[NUM_BINS + 1] of each."""
        rows = {
            part: sum(int(of_file[high] - of_file[low]) for of_file in bounds)
            for part, (low, high) in self.parts.items()
        }
        return Split(**rows)

    def jobs(self, split: Split, shard_rows: int) -> list[ShardJob]:
        """Lists every shard of every part; the rows of all are shuffled."""
        jobs = []
        for part, (low, high) in self.parts.items():
            count = min(high - low, -(-getattr(split, part) // shard_rows))
            jobs += [_job_of_bins(part, k, count, low, high) for k in range(count)]
        return jobs


def split_rows(kind: str, rows_per_source: list[int]) -> Split:
    """Splits rows: holds out the last file, the last seventh, or none."""
    total = sum(rows_per_source)
    if kind == "none":
        held_out = 0
    elif kind == "last-file":
        if len(rows_per_source) < 2:
            raise DataError("the last file is to be held out, but there is only one: give several, or --split")
        held_out = rows_per_source[-1]
    else:
        held_out = total // _DAYS
    test = (held_out + 1) // 2
    return Split(total - held_out, test, held_out - test)


def time_jobs(split: Split, shard_rows: int, keeps_order: bool) -> list[ShardJob]:
    """Lists every shard of every part where time decides; training rows keep their order where that is asked for."""
    jobs = [] if keeps_order else [job for job in shard_jobs(split, shard_rows) if job.part == "train"]
    for part in ("train", "test", "validation") if keeps_order else ("test", "validation"):
        jobs += _jobs_in_order(part, 0, getattr(split, part), shard_rows)
    return jobs


def _jobs_in_order(part: str, first: int, count: int, shard_rows: int) -> list[ShardJob]:
    return [
        ShardJob(f"{part}-{k:05d}.shard", part, k, start, min(start + shard_rows, first + count), in_order=True)
        for k, start in enumerate(range(first, first + count, shard_rows))
    ]


def _job_of_bins(part: str, number: int, count: int, first: int, last: int) -> ShardJob:
    """Returns the job of one of `count` shards, which share bins first to last - 1."""
    low, high = (first + (last - first) * k // count for k in (number, number + 1))
    return ShardJob(f"{part}-{number:05d}.shard", part, number, low, high)


def shard_jobs(split: Split, shard_rows: int) -> list[ShardJob]:
    """Lists every shard of every part."""
    num_train = min(NUM_BINS, -(-split.train // shard_rows))
    jobs = [_job_of_bins("train", k, num_train, 0, NUM_BINS) for k in range(num_train)]
    first = split.train
    for part, count in (("test", split.test), ("validation", split.validation)):
        jobs += _jobs_in_order(part, first, count, shard_rows)
        first += count
    return jobs
