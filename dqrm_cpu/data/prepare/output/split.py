"""The split into training, test and validation rows, and into shards of each part (paper: last day held out).

The held-out rows are halved as DLRM does it: the first half, the larger one if their number is odd, is the test part,
the rest validates. They keep their order; training rows are shuffled.
"""

from dataclasses import dataclass

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

    Rows are counted over all of them, or over those of the part where time decides.
    """

    name: str
    part: str
    number: int
    first: int
    last: int
    in_order: bool = False


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


def shard_jobs(split: Split, shard_rows: int) -> list[ShardJob]:
    """Lists every shard of every part."""
    jobs = []
    num_train = min(NUM_BINS, -(-split.train // shard_rows))
    for k in range(num_train):
        low, high = NUM_BINS * k // num_train, NUM_BINS * (k + 1) // num_train
        jobs.append(ShardJob(f"train-{k:05d}.shard", "train", k, low, high))
    first = split.train
    for part, count in (("test", split.test), ("validation", split.validation)):
        jobs += _jobs_in_order(part, first, count, shard_rows)
        first += count
    return jobs
