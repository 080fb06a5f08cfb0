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
from dqrm_cpu.lab.bench.data.predict_works import EXPORTED, RUN, Predicted, polars_torch_work, predict_work

_PIECE_BYTES = 4 << 20
_LOADER_BATCH = 2048


@dataclass(frozen=True)
class DataTask:
    """The task of one process."""

    kind: str  # one of WORKS
    source: str  # a raw file, or the folder of prepared rows
    out: str
    threads: int


@dataclass(frozen=True)
class Contents:
    """The counts of what a contestant read, which must be alike for all; 0 where it does not look."""

    rows: int = 0
    clicks: int = 0
    distinct: int = 0  # categories, missing cells counted as one, over all columns
    dense_sum: float = 0.0  # or that of the probabilities
    steady_s: float = 0.0  # of a prediction: without what is loaded before its first rows


@dataclass(frozen=True)
class ProcessFigures:
    """Figures of one process."""

    seconds: float  # of the work with all that its first calls cost; imports at the top of modules come before it
    peak_bytes: int
    contents: Contents


TimedWork = tuple[Callable[[], object], Callable[[], Contents]]
"""A function whose time is taken, and one that summarizes afterwards what it read."""


def prepare_work(task: DataTask) -> TimedWork:
    """Returns `dqrm-cpu prepare --format kaggle`, and what its manifest says."""
    from dqrm_cpu.data.prepare.preparation import prepare
    from dqrm_cpu.data.prepare.request import PrepareRequest, Resources, Settings
    from dqrm_cpu.data.prepare.row_layout import CRITEO_LAYOUT
    from dqrm_cpu.data.prepare.sources.raw_file import examine
    from dqrm_cpu.data.store.manifest import read_manifest

    def work() -> object:
        settings, resources = Settings(CRITEO_LAYOUT), Resources(task.threads, 0)
        sources = (examine(task.source),)
        return prepare(
            PrepareRequest(
                sources, Path(task.out), settings, resources, sys.stdin.buffer, lambda _: None, lambda _: None
            )
        )

    def summarize() -> Contents:
        manifest = read_manifest(Path(task.out))
        rows = sum(manifest.num_rows(part) for part in manifest.parts)
        clicks = sum(manifest.num_clicks(part) for part in manifest.parts)
        dense = manifest.columns[: manifest.schema.num_dense]
        categories = manifest.columns[manifest.schema.num_dense :]
        distinct = sum((column.distinct or 0) + bool(column.missing) for column in categories)
        return Contents(rows, clicks, distinct, rows * sum(column.mean or 0.0 for column in dense))

    return work, summarize


def load_work(task: DataTask) -> TimedWork:
    """Returns an epoch of the loader that training uses, batch after batch."""
    import torch

    from dqrm_cpu.config import Config
    from dqrm_cpu.config.schema import flatten, unflatten
    from dqrm_cpu.data.batch import rank_shares
    from dqrm_cpu.data.loader import Loader
    from dqrm_cpu.data.source import open_data
    from dqrm_cpu.data.store.run_data import follow_data

    torch.set_num_threads(task.threads)
    config = follow_data(unflatten({**flatten(Config()), "data.source": task.source}), frozenset({"data.source"}))
    rows = clicks = 0

    def work() -> None:
        nonlocal rows, clicks
        loader = Loader(open_data(config).train, _LOADER_BATCH, rank_shares(0, 1, 1), torch.device("cpu"))
        for number in range(loader.num_batches):
            batch = loader.batches(number)[0]
            rows += batch.size
            clicks += int(batch.label.sum())

    return work, lambda: Contents(rows, clicks)


def read_work(task: DataTask) -> TimedWork:
    """Returns the work of reading a file, whose bytes are thrown away."""
    buffer = bytearray(_PIECE_BYTES)

    def work() -> None:
        with Path(task.source).open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass

    return work, Contents


def unpack_work(task: DataTask) -> TimedWork:
    """Returns the work of unpacking a .gz file with isal; the text is thrown away."""
    from isal import igzip

    opened: Any = igzip.open
    buffer = bytearray(_PIECE_BYTES)

    def work() -> None:
        with opened(task.source, "rb") as file:
            while file.readinto(buffer):
                pass

    return work, Contents


def _polars(task: DataTask) -> TimedWork:
    from dqrm_cpu.lab.bench.data.polars_prepare import polars_work

    work, summarize = polars_work(task.source, task.out)
    return work, lambda: Contents(*summarize())


def _predicting(model: str) -> Callable[[DataTask], TimedWork]:
    def predicting(task: DataTask) -> TimedWork:
        return _outcome(*predict_work(model, task.source, task.out, task.threads))

    return predicting


def _polars_torch(task: DataTask) -> TimedWork:
    return _outcome(*polars_torch_work(task.source, task.out, task.threads))


def _outcome(work: Callable[[], object], predicted: Predicted) -> TimedWork:
    return work, lambda: Contents(predicted.rows, dense_sum=predicted.sum_of_probabilities, steady_s=predicted.steady_s)


WORKS: Mapping[str, Callable[[DataTask], TimedWork]] = MappingProxyType(
    {
        "prepare": prepare_work,
        "load": load_work,
        "read": read_work,
        "unpack": unpack_work,
        "polars": _polars,
        "predict_file": _predicting(EXPORTED),
        "predict_run": _predicting(RUN),
        "polars_torch": _polars_torch,
    }
)


def run_task(task: DataTask) -> ProcessFigures:
    """Imports, times, measures, and only then summarizes. What the work itself imports counts as its own time."""
    work, summarize = WORKS[task.kind](task)
    began = time.perf_counter()
    work()
    seconds = time.perf_counter() - began
    return ProcessFigures(seconds, peak_memory(), summarize())


def peak_memory() -> int:
    """Returns the bytes that this process held at most.

    Not ru_maxrss, in which the memory of whoever started it counts as well.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise DataError("/proc/self/status names no peak of memory (VmHWM); `bench data` needs Linux")


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(asdict(run_task(DataTask(**json.loads(sys.argv[1]))))))
