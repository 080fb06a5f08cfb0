"""What a report reads of a run folder, finished or still going on."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from dqrm_cpu.base.decode import UnreadableError, decoded, read_json
from dqrm_cpu.config import Config
from dqrm_cpu.config.load import load_run_config
from dqrm_cpu.errors import CheckpointError, ConfigError
from dqrm_cpu.model.size import ModelBytes, model_bytes
from dqrm_cpu.timing.span_file import RankSpans, read_spans
from dqrm_cpu.train.beginning import Beginning, read_beginning
from dqrm_cpu.train.checkpoint import CheckpointStore
from dqrm_cpu.train.checkpoint_folder import newest_config, read_state
from dqrm_cpu.train.metrics_row import MetricsRow, RunPhase
from dqrm_cpu.train.run_folder import read_sound_rows, result_checksum
from dqrm_cpu.train.run_place import checkpoints_folder, holds_run, no_run, require_one_model
from dqrm_cpu.train.state import RunState
from dqrm_cpu.train.tuning.record import COUNT_FILE, SETTINGS_FILE, SearchRecord, read_record


class _Rank(msgspec.Struct):
    rank: int
    host: str
    threads: int
    affinity: list[int]


class _Package(msgspec.Struct):
    name: str
    version: str | None


class _Machine(msgspec.Struct):
    cpu_model: str
    cores: int
    isa: list[str]
    memory_total_bytes: int
    python: str
    packages: list[_Package]


class _Environment(msgspec.Struct):
    """The parts of environment.json that a page shows."""

    dqrm_cpu: str
    command: list[str]
    ranks: list[_Rank]
    machine: _Machine


class _Scores(msgspec.Struct):
    auc: float | None
    log_loss: float | None


class _Test(msgspec.Struct):
    best: _Scores


class _Result(msgspec.Struct):
    """The parts of result.json that a page shows."""

    test: _Test


class StepsNotLogged(NamedTuple):
    """The steps of a run that are fewer than those of a row of its log, by its newest checkpoint."""

    steps: int
    loss: float  # their mean


@dataclass(frozen=True)
class RunFiles:
    """The files of one run as they were read; `name` distinguishes the runs of one report."""

    name: str
    path: Path
    config: Config
    rows: tuple[MetricsRow, ...]
    spans: tuple[RankSpans, ...]
    environment: Mapping[str, Any]
    result: Mapping[str, Any] | None  # None before the run has finished
    damages: tuple[str, ...] = ()  # of the log, whose other rows are shown
    searches: tuple[SearchRecord, ...] = ()  # before training: for a count of ids, for settings
    notes: tuple[str, ...] = ()  # on settings that its config.toml lacks
    beginning: Beginning | None = None  # with the weights of another run; None: with fresh ones
    not_logged: StepsNotLogged | None = None  # of a run that has no row of training yet

    @cached_property
    def sizes(self) -> ModelBytes:
        return model_bytes(self.config)

    @property
    def quantized(self) -> bool:
        return self.config.quant.method != "none"

    def of_phase(self, phase: RunPhase) -> list[MetricsRow]:
        return [row for row in self.rows if row.phase == phase]

    def training_seconds(self, steps: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Returns how long rank 0 had computed steps when each of these was done; NaN where no time was recorded.

        That leaves out what is between steps, and the first step of a process, which compiles.
        """
        timed = [row for row in self.of_phase("train") if math.isfinite(row.times.ms_per_step)]
        if not timed:
            return np.full(steps.size, math.nan)
        at = np.array([0, *(row.step for row in timed)], dtype=np.float64)
        spent = np.diff(at) * [row.times.ms_per_step / 1e3 for row in timed]
        seconds: npt.NDArray[np.float64] = np.interp(steps, at, np.concatenate([[0.0], np.cumsum(spent)]))
        return seconds

    def wall_seconds(self, steps: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Returns how long the run had gone on when each of these was done, with all interruptions; NaN: not recorded.

        It began as long before its first row as the steps before that took.
        """
        dated = [row for row in self.rows if math.isfinite(row.logged_at)]
        if not dated:
            return np.full(steps.size, math.nan)
        at, first = np.unique([row.step for row in dated], return_index=True)
        logged = np.maximum.accumulate([row.logged_at for row in dated])[first]  # a clock may be set back
        before = np.nan_to_num(self.training_seconds(at[:1].astype(np.float64)))
        seconds: npt.NDArray[np.float64] = np.interp(steps, at, logged - logged[0] + before)
        return seconds

    @property
    def last_step(self) -> int:
        return max((row.step for row in self.rows), default=0)

    @property
    def best(self) -> MetricsRow | None:
        """The best evaluation by train.best_by, the earliest of equals, as training chooses it."""
        best: MetricsRow | None = None
        for row in self.of_phase("validation"):
            if row.metrics and row.metrics.is_better_than(best.metrics if best else None, self.config.train.best_by):
                best = row
        return best


def read_runs(paths: list[Path]) -> tuple[RunFiles, ...]:
    """Reads runs in the order given, named by their folders, with their parents where those are the same."""
    names = [path.resolve().name for path in paths]
    if len(set(names)) < len(names):
        names = [f"{path.resolve().parent.name}/{path.resolve().name}" for path in paths]
    if len(set(names)) < len(names):
        names = [f"{number}: {name}" for number, name in enumerate(names, start=1)]
    return tuple(_read_run(path, name) for path, name in zip(paths, names, strict=True))


def log_warnings(run: RunFiles) -> list[str]:
    """Says what a reader must know before trusting the curves."""
    if not run.damages:
        return list(run.notes)
    return [*run.notes, f"{run.path / 'metrics.jsonl'} is damaged, the other rows are shown: {'; '.join(run.damages)}"]


def _read_run(path: Path, name: str) -> RunFiles:
    settings = path / "config.toml"
    if not holds_run(path):
        page = path / "report.html"
        made = f"; it holds a profile, whose page is {page}" if (path / "profile.json").exists() else ""
        raise ConfigError(no_run(path, made))
    require_one_model(path)
    recorded = newest_config(checkpoints_folder(path))
    if not settings.exists() and recorded is None:
        raise ConfigError(f"{path} holds a run without its settings; restore {settings}")
    (config, _), notes = load_run_config(settings, {}, recorded)
    environment = _json(path / "environment.json", _Environment) or {}
    result = _json(path / "result.json", _Result)
    state = _newest_state(path)
    rows, damages = read_sound_rows(path, None if state is None else state.log)
    shown = tuple(row for row in rows if row.is_of(len(config.model.table_rows)))
    if len(shown) < len(rows):
        damages.append(f"rows of another number of tables than the run has: {len(rows) - len(shown):,}")
    beginning = None
    try:
        beginning = read_beginning(path)
    except CheckpointError as error:
        notes = [*notes, str(error)]
    return RunFiles(
        name,
        path,
        config,
        shown,
        read_spans(path),
        environment,
        result,
        tuple(damages),
        tuple(record for name in (COUNT_FILE, SETTINGS_FILE) if (record := read_record(path, name)) is not None),
        tuple(notes),
        beginning,
        None if any(row.phase == "train" for row in shown) else _not_logged(state),
    )


def _newest_state(path: Path) -> RunState | None:
    """Returns where the run stood at its newest checkpoint; None where there is none that can be read."""
    newest = CheckpointStore(checkpoints_folder(path), keep=1).newest()
    try:
        return None if newest is None else RunState.from_dict(read_state(newest))
    except CheckpointError:  # a page shows it where weights are read
        return None


def _not_logged(state: RunState | None) -> StepsNotLogged | None:
    if state is None or not 0 < state.window_steps == state.step - state.skipped_batches:
        return None  # rows of its log are lost
    return StepsNotLogged(state.window_steps, state.window_loss / state.window_steps)


def _json(path: Path, kind: type[object]) -> dict[str, Any] | None:
    """Reads the document at `path`, which has at least what `kind` has; None where there is none."""
    try:
        document: dict[str, Any] = read_json(path)
        decoded(document, kind)
        if kind is _Result and document.get("crc32", result_checksum(document)) != result_checksum(document):
            raise UnreadableError("does not match its own checksum")
    except FileNotFoundError:
        return None
    except (OSError, UnreadableError) as error:
        raise ConfigError(f"{path} cannot be read (it {error}); restore it, or remove it to do without") from error
    return document
