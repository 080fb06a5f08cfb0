"""`bench data`: who prepares or scores raw clicks, from which file; a process for each contestant and round."""

import importlib.util
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType

from dqrm_cpu.base.memory import format_size
from dqrm_cpu.config.schema import KAGGLE_TABLE_ROWS
from dqrm_cpu.data.store.schema import CRITEO
from dqrm_cpu.data.synthetic.stream import SyntheticClicks
from dqrm_cpu.data.synthetic.write_tsv import write_tsv
from dqrm_cpu.errors import DataError
from dqrm_cpu.lab.bench.data.data_process import Contents, DataTask, ProcessFigures
from dqrm_cpu.lab.bench.data.polars_prepare import PACKAGE as POLARS
from dqrm_cpu.lab.bench.data.predict_case import (
    PREDICT,
    PREDICT_CASE,
    STEADY,
    make_models,
    require_same_predictions,
    steady_figures,
)
from dqrm_cpu.lab.bench.data.predict_works import DATA as PREPARED
from dqrm_cpu.lab.bench.data.predict_works import RAW
from dqrm_cpu.lab.bench.harness.benchmark import Benchmark, RunEnvironment
from dqrm_cpu.lab.bench.harness.contestant import AbsentError, taking_part
from dqrm_cpu.lab.bench.harness.result import CaseResult, ContestantResult, GroupResult, Ratio, Timing
from dqrm_cpu.lab.bench.harness.runner import BenchProgress, ProgressObserver, rotated

CASE_ROWS = MappingProxyType({"rows_1m": 1_000_000, "rows_8m": 8_000_000, PREDICT_CASE: 1_000_000})
"""How many generated rows are prepared or scored, by the name of the case."""

_QUICK_ROWS = 20_000
_SEED = 1
_ROW_BYTES = 1000  # two raw files, prepared rows, and those on their way to shards
_SAME_SUM = 1e-5  # float32 logarithms, summed in another order


def require_package(name: str = POLARS) -> None:
    """Raises AbsentError where the package is not installed."""
    if importlib.util.find_spec(name) is None:
        raise AbsentError("not installed; pip install 'dqrm-cpu[bench]'")


@dataclass(frozen=True)
class DataContestant:
    """Work on one source: the plain file, the gzip file, or the rows prepared from them."""

    name: str
    about: str
    kind: str  # of data_process.WORKS
    source: str  # plain, gzip or prepared
    require: Callable[[], None] = lambda: None  # raises AbsentError


@dataclass(frozen=True)
class DataGroup:
    """Contestants that read the same source."""

    name: str
    contestants: tuple[DataContestant, ...]
    baseline: str


_OURS = "parsed, ids, logarithms, split, shuffled, checksums, forced to the disk"
_POLARS = "scan_csv to sink_parquet: ids by its categoricals, logarithms; no split, no shuffle"


def _preparing(source: str, floor: DataContestant) -> DataGroup:
    """Makes a group of ours, polars, and the least that anyone must do."""
    polars = DataContestant(f"polars_{source}", _POLARS, "polars", source, require_package)
    ours = DataContestant(f"ours_{source}", _OURS, "prepare", source)
    return DataGroup(source, (ours, polars, floor), polars.name)


GROUPS = (
    _preparing("plain", DataContestant("read_floor", "the bytes read by one thread and thrown away", "read", "plain")),
    _preparing(
        "gzip", DataContestant("unpack_floor", "unpacked by one thread with isal and thrown away", "unpack", "gzip")
    ),
    DataGroup(
        "loader",
        (DataContestant("loader", "an epoch in batches of 2048, read ahead on a thread", "load", "prepared"),),
        "loader",
    ),
)

PREDICT_GROUP = DataGroup(
    PREDICT,
    (
        DataContestant("ours_file", "predict, by the exported file", "predict_file", "plain"),
        DataContestant("ours_run", "predict, by the run", "predict_run", "plain"),
        DataContestant(
            "polars_torch",
            "polars: read_csv, a join for each column, write_csv; PyTorch in FP32, eager: EmbeddingBag, Linear",
            "polars_torch",
            "plain",
            require_package,
        ),
    ),
    "polars_torch",
)


def _run(case: str, environment: RunEnvironment, observe: ProgressObserver) -> CaseResult:
    return (_run_predict if case == PREDICT_CASE else _run_prepare)(case, environment, observe)


def _run_predict(case: str, environment: RunEnvironment, observe: ProgressObserver) -> CaseResult:
    rows = _QUICK_ROWS if environment.quick else CASE_ROWS[case]
    with tempfile.TemporaryDirectory(prefix="dqrm-cpu-bench-") as name:
        folder = Path(name)
        _require_space(folder, case, rows)
        observe(BenchProgress(case, "writing the raw rows and a model"))
        sources = _write_sources(folder, rows, ("plain",))
        make_models(folder, sources["plain"])
        present, absent = taking_part(PREDICT_GROUP.contestants, lambda contestant: contestant.require())
        figures = _take_turns(case, environment, observe, (folder, sources), present)
        require_same_predictions(rows, {one: every[0] for one, every in figures.items()})
        text_bytes = sources["plain"].stat().st_size
    about = f"{rows:,} generated rows, {text_bytes / 1e6:,.0f} MB of text, the demo's model"
    steady = [replace(one, name=f"{one.name}_steady") for one in PREDICT_GROUP.contestants]
    steady_group = DataGroup(STEADY, tuple(steady), f"{PREDICT_GROUP.baseline}_steady")
    of_steady = {f"{one}_steady": why for one, why in absent.items()}
    groups = (
        group_result(PREDICT_GROUP, rows, figures, absent),
        group_result(steady_group, rows, steady_figures(figures), of_steady),
    )
    return CaseResult(case, about, {"rows": rows, "text_bytes": text_bytes}, groups)


def _run_prepare(case: str, environment: RunEnvironment, observe: ProgressObserver) -> CaseResult:
    """Raises DataError where there is no room, or where contestants come to different results."""
    rows = _QUICK_ROWS if environment.quick else CASE_ROWS[case]
    with tempfile.TemporaryDirectory(prefix="dqrm-cpu-bench-") as name:
        folder = Path(name)
        _require_space(folder, case, rows)
        observe(BenchProgress(case, "writing the raw files"))
        sources = _write_sources(folder, rows)
        every = (contestant for group in GROUPS for contestant in group.contestants)
        present, absent = taking_part(every, lambda contestant: contestant.require())
        figures = _take_turns(case, environment, observe, (folder, sources), present)
        require_same(rows, present, [figures[contestant.name][0] for contestant in present])
        sizes = {kind: sources[kind].stat().st_size for kind in ("plain", "gzip")}
    about = f"{rows:,} generated rows, {sizes['plain'] / 1e6:,.0f} MB of text, {sizes['gzip'] / 1e6:,.0f} MB as gzip"
    facts = {"rows": rows, "text_bytes": sizes["plain"], "gzip_bytes": sizes["gzip"]}
    return CaseResult(case, about, facts, tuple(group_result(group, rows, figures, absent) for group in GROUPS))


def _take_turns(
    case: str,
    environment: RunEnvironment,
    observe: ProgressObserver,
    files: tuple[Path, Mapping[str, Path]],
    present: Sequence[DataContestant],
) -> dict[str, list[ProcessFigures]]:
    """Runs every contestant once to warm up, and once in every round; returns their figures in this order."""
    (folder, sources), rounds = files, 1 + environment.plan.rounds
    figures: dict[str, list[ProcessFigures]] = {contestant.name: [] for contestant in present}
    for number, order in enumerate(rotated(present, rounds)):
        observe(BenchProgress(case, "taking turns", number, rounds, 1))
        for contestant in order:
            figures[contestant.name].append(_run_process(contestant, folder, sources, environment.threads))
    observe(BenchProgress(case, "taking turns", rounds, rounds, 1))
    return figures


def _require_space(folder: Path, case: str, rows: int) -> None:
    free, needed = shutil.disk_usage(folder).free, rows * _ROW_BYTES
    if free < needed:
        raise DataError(
            f"case {case} needs {format_size(needed)} in {folder.parent}, {format_size(free)} are free; "
            "name another folder in the environment variable TMPDIR, or try --quick"
        )


def _write_sources(folder: Path, rows: int, kinds: Sequence[str] = ("plain", "gzip")) -> dict[str, Path]:
    clicks = SyntheticClicks(KAGGLE_TABLE_ROWS, CRITEO.num_dense, _SEED)
    sources = {"plain": folder / RAW, "gzip": folder / f"{RAW}.gz", "prepared": folder / PREPARED}
    for kind in kinds:
        write_tsv(clicks, 0, rows, sources[kind])
    return sources


def _run_process(contestant: DataContestant, folder: Path, sources: Mapping[str, Path], threads: int) -> ProcessFigures:
    """Starts a process and reads what it left in a file."""
    out, figures = folder / contestant.name, folder / "figures.json"
    shutil.rmtree(out, ignore_errors=True)
    task = DataTask(contestant.kind, str(sources[contestant.source]), str(out), threads)
    command = [sys.executable, "-m", "dqrm_cpu.lab.bench.data.data_process", json.dumps(asdict(task)), str(figures)]
    environment = {**os.environ, "POLARS_MAX_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise DataError(f"{contestant.name} ended with status {done.returncode}: {last[0]}")
    plain = json.loads(figures.read_text())
    return ProcessFigures(plain["seconds"], plain["peak_bytes"], Contents(**plain["contents"]))


def require_same(rows: int, present: Sequence[DataContestant], figures: Sequence[ProcessFigures]) -> None:
    """Raises DataError unless all that prepare read the same: figures of different results would mean nothing."""
    contents = {c.name: f.contents for c, f in zip(present, figures, strict=True) if c.kind in ("prepare", "polars")}
    ours = contents["ours_plain"]
    if ours.rows != rows:
        raise DataError(f"ours_plain prepared {ours.rows:,} of {rows:,} rows")
    for name, other in contents.items():
        counted = (other.rows, other.clicks, other.distinct) == (ours.rows, ours.clicks, ours.distinct)
        if not counted or not math.isclose(other.dense_sum, ours.dense_sum, rel_tol=_SAME_SUM):
            raise DataError(f"{name} came to another result than ours_plain: {other}, {ours}")


def group_result(
    group: DataGroup, rows: int, figures: Mapping[str, Sequence[ProcessFigures]], absent: Mapping[str, str]
) -> GroupResult:
    """Gathers the figures of all rounds. The first is not timed.

    It compiles what is not compiled yet, and brings the files into memory.
    """
    entries = []
    for contestant in group.contestants:
        if contestant.name not in absent:
            warm, *timed = figures[contestant.name]
            timing = Timing(tuple(process.seconds for process in timed), 1)
            peak = int(statistics.median(process.peak_bytes for process in timed))
            read = warm.contents.rows or rows
            entries.append(ContestantResult(contestant.name, contestant.about, timing, rows=read, peak_bytes=peak))
    names = [contestant.name for contestant in group.contestants]
    return GroupResult(
        group.name, group.baseline, tuple(entries), {name: absent[name] for name in names if name in absent}
    )


DATA = Benchmark(
    name="data",
    cases=tuple(CASE_ROWS),
    default_cases=("rows_1m",),
    run=_run,
    ratios=(
        Ratio("prepare_over_polars", "plain", "ours_plain", "polars_plain"),
        Ratio("prepare_over_polars", "gzip", "ours_gzip", "polars_gzip"),
        Ratio("prepare_over_floor", "plain", "ours_plain", "read_floor"),
        Ratio("prepare_over_floor", "gzip", "ours_gzip", "unpack_floor"),
        Ratio("file_over_polars_torch", PREDICT, "ours_file", "polars_torch"),
        Ratio("run_over_polars_torch", PREDICT, "ours_run", "polars_torch"),
        Ratio("file_over_polars_torch", STEADY, "ours_file_steady", "polars_torch_steady"),
        Ratio("run_over_polars_torch", STEADY, "ours_run_steady", "polars_torch_steady"),
    ),
    notes=(
        "Every round of every contestant is a process of its own; contestants take turns. Seconds are those of the "
        "work, with first calls, what numba imports at its first kernel among them, without others; peak_bytes is the "
        "process' VmHWM, imports and mapped files included.",
        "Files are in the page cache. Contestants that prepare are checked to have found the same rows, clicks, "
        "categories and logarithms; those that score, the same probabilities to five digits.",
        "predict_steady leaves out the start: of ours what lies before the first rows are written, in proportion; of "
        "polars with PyTorch loading the model and the vocabulary.",
    ),
    packages=(POLARS, "isal"),
)
