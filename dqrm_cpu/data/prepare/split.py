"""Which rows are for training, validation and test, and which shard each part's rows go to (paper: last day held out).

The held-out rows are halved as DLRM does it: the first half, the larger one if their number is odd, is the test part,
the rest validates. They keep their order; training rows are shuffled.
"""

from dataclasses import dataclass

from dqrm_cpu.data.prepare.order import NUM_BINS
from dqrm_cpu.errors import DataError

_DAYS = 7


@dataclass(frozen=True)
class Split:
    """Rows 0 to train - 1, then test, then validation."""

    train: int
    test: int
    validation: int


@dataclass(frozen=True)
class ShardJob:
    """One shard to write: bins first to last - 1 of the training rows, or rows first to last - 1 held out."""

    name: str
    part: str
    number: int
    first: int
    last: int


def split_rows(kind: str, rows_per_source: list[int]) -> Split:
    """The split of request.SPLITS that was asked for."""
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


def shard_jobs(split: Split, shard_rows: int) -> list[ShardJob]:
    """Every shard of every part."""
    jobs = []
    num_train = min(NUM_BINS, -(-split.train // shard_rows))
    for k in range(num_train):
        low, high = NUM_BINS * k // num_train, NUM_BINS * (k + 1) // num_train
        jobs.append(ShardJob(f"train-{k:05d}.shard", "train", k, low, high))
    first = split.train
    for part, count in (("test", split.test), ("validation", split.validation)):
        for k, start in enumerate(range(first, first + count, shard_rows)):
            jobs.append(ShardJob(f"{part}-{k:05d}.shard", part, k, start, min(start + shard_rows, first + count)))
        first += count
    return jobs
