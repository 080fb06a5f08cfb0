"""What a report reads of a run folder, finished or still going on."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from dqrm_cpu.base.decode import UnreadableError, decoded, read_json
from dqrm_cpu.config import Config
from dqrm_cpu.config.load import load_run_config
from dqrm_cpu.errors import CheckpointError, ConfigError
from dqrm_cpu.model.size import ModelBytes, model_bytes
from dqrm_cpu.profile.span_file import RankSpans, read_spans
from dqrm_cpu.train.checkpoint import CheckpointStore, newest_config, read_state
from dqrm_cpu.train.metrics_log import LogMark
from dqrm_cpu.train.metrics_row import MetricsRow, Phase
from dqrm_cpu.train.run_folder import checkpoints_folder, holds_run, read_sound_rows, result_checksum


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
    """What a page shows of environment.json."""

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
    """What a page shows of result.json."""

    test: _Test


@dataclass(frozen=True)
class RunFiles:
    """`name` tells the runs of one report apart."""

    name: str
    path: Path
    config: Config
    rows: tuple[MetricsRow, ...]
    spans: tuple[RankSpans, ...]
    environment: Mapping[str, Any]
    result: Mapping[str, Any] | None  # None before the run has finished
    damages: tuple[str, ...] = ()  # of the log, whose other rows are shown
    notes: tuple[str, ...] = ()  # on settings that its config.toml lacks

    @cached_property
    def sizes(self) -> ModelBytes:
        return model_bytes(self.config)

    @property
    def quantized(self) -> bool:
        return self.config.quant.method != "none"

    def of_phase(self, phase: Phase) -> list[MetricsRow]:
        return [row for row in self.rows if row.phase == phase]

    @property
    def last_step(self) -> int:
        return max((row.step for row in self.rows), default=0)

    @property
    def best(self) -> MetricsRow | None:
        """The evaluation with the highest AUC, the earliest of equals, as training chooses it."""
        rated = [row for row in self.of_phase("validation") if row.metrics and row.metrics.auc == row.metrics.auc]
        return max(rated, key=lambda row: row.metrics.auc if row.metrics else 0.0, default=None)


def read_runs(paths: list[Path]) -> tuple[RunFiles, ...]:
    """In the order given; named by their folders, with their parents where those are the same."""
    names = [path.resolve().name for path in paths]
    if len(set(names)) < len(names):
        names = [f"{path.resolve().parent.name}/{path.resolve().name}" for path in paths]
    if len(set(names)) < len(names):
        names = [f"{number}: {name}" for number, name in enumerate(names, start=1)]
    return tuple(_read_run(path, name) for path, name in zip(paths, names, strict=True))


def log_warnings(run: RunFiles) -> list[str]:
    """What a reader must know before trusting the curves."""
    if not run.damages:
        return list(run.notes)
    return [*run.notes, f"{run.path / 'metrics.jsonl'} is damaged, the other rows are shown: {'; '.join(run.damages)}"]


def _read_run(path: Path, name: str) -> RunFiles:
    settings = path / "config.toml"
    if not holds_run(path):
        page = path / "report.html"
        made = f"; it holds a profile, whose page is {page}" if (path / "profile.json").exists() else ""
        raise ConfigError(f"{path} holds no run; give a folder that dqrm-cpu train wrote{made}")
    recorded = newest_config(checkpoints_folder(path))
    if not settings.exists() and recorded is None:
        raise ConfigError(f"{path} holds a run without its settings; restore {settings}")
    (config, _), notes = load_run_config(settings, {}, recorded)
    environment = _json(path / "environment.json", _Environment) or {}
    result = _json(path / "result.json", _Result)
    mark = _log_mark(path)
    rows, damages = read_sound_rows(path, mark)
    shown = tuple(row for row in rows if row.is_of(len(config.model.table_rows)))
    if len(shown) < len(rows):
        damages.append(f"rows of another number of tables than the run has: {len(rows) - len(shown):,}")
    return RunFiles(name, path, config, shown, read_spans(path), environment, result, tuple(damages), tuple(notes))


def _log_mark(path: Path) -> LogMark | None:
    """What the newest checkpoint knows of the log; None where there is none that can be read."""
    newest = CheckpointStore(checkpoints_folder(path), keep=1).newest()
    try:
        return None if newest is None else LogMark.of_state(read_state(newest))
    except CheckpointError:  # a page shows it where weights are read
        return None


def _json(path: Path, kind: type[object]) -> dict[str, Any] | None:
    """The document at `path`, which has at least what `kind` has; None where there is none."""
    try:
        found: dict[str, Any] = read_json(path)
        decoded(found, kind)
        if kind is _Result and found.get("crc32", result_checksum(found)) != result_checksum(found):
            raise UnreadableError("does not match its own checksum")
    except FileNotFoundError:
        return None
    except (OSError, UnreadableError) as error:
        raise ConfigError(f"{path} cannot be read (it {error}); restore it, or remove it to do without") from error
    return found
