"""Runs `bench data`: writes the raw files, starts a process per contestant and round, gathers what they found."""

import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from dqrm_cpu.bench.against import TimedGroup
from dqrm_cpu.bench.contestant import taking_part
from dqrm_cpu.bench.data import GROUPS, DataCase, DataContestant, DataGroup
from dqrm_cpu.bench.data_work import Found, Outcome, Task
from dqrm_cpu.bench.timing import Timing
from dqrm_cpu.config.schema import KAGGLE_TABLE_ROWS
from dqrm_cpu.data.prepare.write_tsv import write_tsv
from dqrm_cpu.data.store.schema import CRITEO
from dqrm_cpu.data.synthetic import SyntheticClicks
from dqrm_cpu.errors import DataError

_SEED = 1
_ROW_BYTES = 1000  # two raw files, prepared rows, and those on their way to shards
_SAME_SUM = 1e-5  # float32 logarithms, summed in another order


@dataclass(frozen=True)
class DataProgress:
    """Where the benchmark stands."""

    case: str
    doing: str
    done: int
    total: int


@dataclass(frozen=True)
class DataEntry:
    """A contestant that took part: figures of all its rounds."""

    contestant: DataContestant
    rows: int  # that it went through in each round
    timing: Timing
    peak_bytes: int  # median over the rounds

    @property
    def rows_per_s(self) -> float:
        return self.rows / self.timing.median_s


@dataclass(frozen=True)
class DataGroupResult:
    """`absent` says by name why others did not take part."""

    group: DataGroup
    entries: tuple[DataEntry, ...]
    absent: Mapping[str, str]


@dataclass(frozen=True)
class DataResult:
    """One case."""

    case: DataCase
    text_bytes: int
    gzip_bytes: int
    groups: tuple[DataGroupResult, ...]

    def medians_s(self) -> dict[str, float]:
        """By the names of contestants."""
        return {entry.contestant.name: entry.timing.median_s for group in self.groups for entry in group.entries}


def timed_groups(results: Iterable[DataResult]) -> list[TimedGroup]:
    """What an earlier benchmark is compared with."""
    return [
        TimedGroup(
            result.case.name,
            found.group.name,
            found.group.baseline,
            {entry.contestant.name: entry.timing for entry in found.entries},
        )
        for result in results
        for found in result.groups
    ]


def run_data_case(case: DataCase, rounds: int, threads: int, observe: Callable[[DataProgress], None]) -> DataResult:
    """Raises DataError where there is no room, or where contestants come to different results."""
    with tempfile.TemporaryDirectory(prefix="dqrm-cpu-bench-") as name:
        folder = Path(name)
        _require_room(folder, case)
        observe(DataProgress(case.name, "writing the raw files", 0, rounds))
        sources = _write_sources(folder, case)
        text_bytes = sources["plain"].stat().st_size
        present, absent = _present()
        # Not timed: compiles what is not compiled yet, brings the files into memory.
        outcomes: dict[str, list[Outcome]] = {contestant.name: [] for contestant in present}
        warm = [_run(contestant, folder, sources, threads) for contestant in present]
        _require_same(case, present, warm)
        for number in range(rounds):
            observe(DataProgress(case.name, "taking turns", number, rounds))
            first = number % len(present)
            for contestant in (*present[first:], *present[:first]):
                outcomes[contestant.name].append(_run(contestant, folder, sources, threads))
        observe(DataProgress(case.name, "taking turns", rounds, rounds))
        rows = {contestant.name: found.found.rows or case.rows for contestant, found in zip(present, warm, strict=True)}
        groups = tuple(_group_result(group, rows, outcomes, absent) for group in GROUPS)
        return DataResult(case, text_bytes, sources["gzip"].stat().st_size, groups)


def _require_room(folder: Path, case: DataCase) -> None:
    free, needed = shutil.disk_usage(folder).free, case.rows * _ROW_BYTES
    if free < needed:
        raise DataError(
            f"case {case.name} needs {needed / 1e9:.1f} GB in {folder.parent}, {free / 1e9:.1f} GB are free; "
            "name another folder in the environment variable TMPDIR, or try --quick"
        )


def _write_sources(folder: Path, case: DataCase) -> dict[str, Path]:
    clicks = SyntheticClicks(KAGGLE_TABLE_ROWS, CRITEO.num_dense, _SEED)
    sources = {"plain": folder / "train.txt", "gzip": folder / "train.txt.gz", "prepared": folder / "ours_plain"}
    for kind in ("plain", "gzip"):
        write_tsv(clicks, 0, case.rows, sources[kind])
    return sources


def _present() -> tuple[list[DataContestant], dict[str, str]]:
    every = (contestant for group in GROUPS for contestant in group.contestants)
    return taking_part(every, lambda contestant: contestant.require())


def _run(contestant: DataContestant, folder: Path, sources: Mapping[str, Path], threads: int) -> Outcome:
    """One process, which says what it found in a file."""
    out, figures = folder / contestant.name, folder / "figures.json"
    shutil.rmtree(out, ignore_errors=True)
    task = Task(contestant.kind, str(sources[contestant.source]), str(out), threads)
    command = [sys.executable, "-m", "dqrm_cpu.bench.data_work", json.dumps(asdict(task)), str(figures)]
    environment = {**os.environ, "POLARS_MAX_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise DataError(f"{contestant.name} ended with status {done.returncode}: {said[0]}")
    plain = json.loads(figures.read_text())
    return Outcome(plain["seconds"], plain["peak_bytes"], Found(**plain["found"]))


def _require_same(case: DataCase, present: list[DataContestant], outcomes: list[Outcome]) -> None:
    """Those that prepare read the same file: figures of different results would mean nothing."""
    preparing = {c.name: o.found for c, o in zip(present, outcomes, strict=True) if c.kind in ("prepare", "polars")}
    wanted = preparing["ours_plain"]
    if wanted.rows != case.rows:
        raise DataError(f"ours_plain prepared {wanted.rows:,} of {case.rows:,} rows")
    for name, found in preparing.items():
        counted = (found.rows, found.clicks, found.distinct) == (wanted.rows, wanted.clicks, wanted.distinct)
        if not counted or not math.isclose(found.dense_sum, wanted.dense_sum, rel_tol=_SAME_SUM):
            raise DataError(f"{name} came to another result than ours_plain: {found}, {wanted}")


def _group_result(
    group: DataGroup, rows: Mapping[str, int], outcomes: Mapping[str, list[Outcome]], absent: Mapping[str, str]
) -> DataGroupResult:
    entries = []
    for contestant in group.contestants:
        if contestant.name in absent:
            continue
        found = outcomes[contestant.name]
        timing = Timing(tuple(outcome.seconds for outcome in found), 1)
        peak = int(statistics.median(outcome.peak_bytes for outcome in found))
        entries.append(DataEntry(contestant, rows[contestant.name], timing, peak))
    names = [contestant.name for contestant in group.contestants]
    return DataGroupResult(group, tuple(entries), {name: absent[name] for name in names if name in absent})
