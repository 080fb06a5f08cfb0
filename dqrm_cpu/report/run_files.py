"""What a report reads of a run folder, finished or still going on."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import UnionType
from typing import Any

from dqrm_cpu.config import Config
from dqrm_cpu.config.load import load_config
from dqrm_cpu.errors import CheckpointError, ConfigError
from dqrm_cpu.model.size import ModelBytes, model_bytes
from dqrm_cpu.profile.span_file import RankSpans, read_spans
from dqrm_cpu.train.checkpoint import CheckpointStore, read_state
from dqrm_cpu.train.metrics_log import LogMark
from dqrm_cpu.train.metrics_row import MetricsRow, Phase
from dqrm_cpu.train.run_folder import checkpoints_folder, holds_run, read_sound_rows

Shape = Any
"""A type; or a dict or list of shapes, which may have more keys and has as many items as it likes."""

_ENVIRONMENT: Shape = {
    "dqrm_cpu": str,
    "command": [str],
    "ranks": [{"rank": int, "host": str, "threads": int, "affinity": [int]}],
    "machine": {
        "cpu_model": str,
        "cores": int,
        "isa": [str],
        "memory_total_bytes": int,
        "python": str,
        "packages": [{"name": str, "version": str | None}],
    },
}
_SCORES: Shape = {"auc": float | None, "log_loss": float | None}
_RESULT: Shape = {"test": {"best": _SCORES}}


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
        return []
    return [f"{run.path / 'metrics.jsonl'} is damaged, the other rows are shown: {'; '.join(run.damages)}"]


def _read_run(path: Path, name: str) -> RunFiles:
    settings = path / "config.toml"
    if not holds_run(path):
        page = path / "report.html"
        made = f"; it holds a profile, whose page is {page}" if (path / "profile.json").exists() else ""
        raise ConfigError(f"{path} holds no run; give a folder that dqrm-cpu train wrote{made}")
    if not settings.exists():
        raise ConfigError(f"{path} holds a run without its settings; restore {settings}")
    config = load_config(None, settings, {})
    environment = _json(path / "environment.json", _ENVIRONMENT) or {}
    result = _json(path / "result.json", _RESULT)
    mark = _log_mark(path)
    rows, damages = read_sound_rows(path, mark)
    return RunFiles(name, path, config, tuple(rows), read_spans(path), environment, result, tuple(damages))


def _log_mark(path: Path) -> LogMark | None:
    """What the newest checkpoint knows of the log; None where there is none that can be read."""
    newest = CheckpointStore(checkpoints_folder(path), keep=1).newest()
    try:
        return None if newest is None else LogMark.of_state(read_state(newest))
    except CheckpointError:  # a page shows it where weights are read
        return None


def _json(path: Path, shape: Shape) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        _require_shape(found, shape, path.stem)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); restore it, or remove it to do without") from error
    return found


def _require_shape(value: object, shape: Shape, place: str) -> None:
    """ValueError where something is of another type, or missing, at that place."""
    kind = shape if isinstance(shape, type | UnionType) else type(shape)
    if not isinstance(value, kind):
        raise ValueError(f"{place} is {type(value).__name__}, not {getattr(kind, '__name__', kind)}")
    if isinstance(shape, dict) and isinstance(value, dict):
        missing = shape.keys() - value.keys()
        if missing:
            raise ValueError(f"{place} has no {', '.join(sorted(missing))}")
        for name, inner in shape.items():
            _require_shape(value[name], inner, f"{place}.{name}")
    if isinstance(shape, list) and isinstance(value, list):
        for number, item in enumerate(value):
            _require_shape(item, shape[0], f"{place}[{number}]")
