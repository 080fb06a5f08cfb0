"""What the contestants of `bench data` do, each in a process of its own, which leaves its figures in a file.

A process of its own, because the peak of its memory is that of everything it ever held. It imports what it needs only.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dqrm_cpu.errors import DataError

_PIECE_BYTES = 4 << 20
_LOADER_BATCH = 2048


@dataclass(frozen=True)
class Task:
    """What one process is to do."""

    kind: str  # one of WORKS
    source: str  # a raw file, or the folder of prepared rows
    out: str
    threads: int


@dataclass(frozen=True)
class Found:
    """What a contestant read, so that all can be seen to have read the same; 0 where it does not look."""

    rows: int = 0
    clicks: int = 0
    distinct: int = 0  # categories, missing cells counted as one, over all columns
    dense_sum: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """Figures of one process."""

    seconds: float  # of the work with all that its first calls cost; imports at the top of modules come before it
    peak_bytes: int
    found: Found


Work = tuple[Callable[[], object], Callable[[], Found]]
"""What is timed, and what is asked afterwards."""


def prepare_work(task: Task) -> Work:
    """`dqrm-cpu prepare --format kaggle`."""
    from dqrm_cpu.data.prepare.layout import CRITEO_LAYOUT
    from dqrm_cpu.data.prepare.raw_files import examine
    from dqrm_cpu.data.prepare.request import Means, Request, Settings
    from dqrm_cpu.data.prepare.run import prepare
    from dqrm_cpu.data.store.manifest import read_manifest

    def work() -> object:
        settings, means = Settings(CRITEO_LAYOUT), Means(task.threads, 0)
        sources = (examine(task.source),)
        return prepare(
            Request(sources, Path(task.out), settings, means, sys.stdin.buffer, lambda _: None, lambda _: None)
        )

    def find() -> Found:
        manifest = read_manifest(Path(task.out))
        rows = sum(manifest.num_rows(part) for part in manifest.parts)
        clicks = sum(manifest.num_clicks(part) for part in manifest.parts)
        dense = manifest.columns[: manifest.schema.num_dense]
        categories = manifest.columns[manifest.schema.num_dense :]
        distinct = sum((column.distinct or 0) + bool(column.missing) for column in categories)
        return Found(rows, clicks, distinct, rows * sum(column.mean or 0.0 for column in dense))

    return work, find


def load_work(task: Task) -> Work:
    """An epoch of the loader that training uses, batch after batch."""
    import torch

    from dqrm_cpu.config import Config
    from dqrm_cpu.config.schema import flatten, unflatten
    from dqrm_cpu.data.loader import Loader
    from dqrm_cpu.data.shards import shards_of
    from dqrm_cpu.data.source import open_data
    from dqrm_cpu.data.store.follow import follow_data

    torch.set_num_threads(task.threads)
    config = follow_data(unflatten({**flatten(Config()), "data.source": task.source}), frozenset({"data.source"}))
    rows = clicks = 0

    def work() -> None:
        nonlocal rows, clicks
        loader = Loader(open_data(config).train, _LOADER_BATCH, shards_of(0, 1, 1), torch.device("cpu"))
        for number in range(loader.num_batches):
            batch = loader.batches(number)[0]
            rows += batch.size
            clicks += int(batch.label.sum())

    return work, lambda: Found(rows, clicks)


def read_work(task: Task) -> Work:
    """The bytes of a file, read and thrown away."""
    buffer = bytearray(_PIECE_BYTES)

    def work() -> None:
        with Path(task.source).open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass

    return work, Found


def unpack_work(task: Task) -> Work:
    """The text of a .gz file, unpacked with isal and thrown away."""
    from isal import igzip

    opened: Any = igzip.open
    buffer = bytearray(_PIECE_BYTES)

    def work() -> None:
        with opened(task.source, "rb") as file:
            while file.readinto(buffer):
                pass

    return work, Found


def _polars(task: Task) -> Work:
    from dqrm_cpu.bench.data_polars import polars_work

    work, find = polars_work(task.source, task.out)
    return work, lambda: Found(*find())


WORKS: Mapping[str, Callable[[Task], Work]] = MappingProxyType(
    {"prepare": prepare_work, "load": load_work, "read": read_work, "unpack": unpack_work, "polars": _polars}
)


def run_task(task: Task) -> Outcome:
    """Imports, times, measures, and only then asks what came out. What the work itself imports is its own time."""
    work, find = WORKS[task.kind](task)
    began = time.perf_counter()
    work()
    seconds = time.perf_counter() - began
    return Outcome(seconds, peak_memory(), find())


def peak_memory() -> int:
    """Bytes that this process held at most. Not ru_maxrss, in which the memory of whoever started it counts as well."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise DataError("/proc/self/status names no peak of memory (VmHWM); `bench data` needs Linux")


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(asdict(run_task(Task(**json.loads(sys.argv[1]))))))
