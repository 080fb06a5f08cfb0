"""The folder that records a run: configuration, environment, a metrics row per logged step, and the result.

A resumed run cuts off the rows beyond the step it resumes from, so that metrics.jsonl reads as if never interrupted.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol, Self

from dqrm_cpu.errors import CheckpointError, ConfigError, TrainingError
from dqrm_cpu.train.checkpoint_manifest import JSON
from dqrm_cpu.train.metrics_row import MetricsRow, strict_json
from dqrm_cpu.train.tensorboard import TensorboardLog

_CONFIG, _ENVIRONMENT, _METRICS, _RESULT = "config.toml", "environment.json", "metrics.jsonl", "result.json"
_INTERRUPTED = "interrupted.json"
_CHECKPOINTS, _TENSORBOARD = "checkpoints", "tensorboard"


class RunLog(Protocol):
    """What the training loop writes to; ranks other than the first hold a `NoRunLog`."""

    def log(self, row: MetricsRow) -> None:
        """Appends a row; it is with the operating system when this returns."""

    def sync(self) -> None:
        """Forces the rows to the disk; before a checkpoint that a resumed run relies on."""

    def write_result(self, result: Mapping[str, JSON]) -> None:
        """Writes result.json, whole or not at all."""

    def write_interrupted(self, step: int, signal_name: str) -> None:
        """Marks the run as incomplete but saved: whoever started it may go on with it."""

    def close(self) -> None: ...


class NoRunLog:
    """Keeps nothing."""

    def log(self, row: MetricsRow) -> None:
        pass

    def sync(self) -> None:
        pass

    def write_result(self, result: Mapping[str, JSON]) -> None:
        pass

    def write_interrupted(self, step: int, signal_name: str) -> None:
        pass

    def close(self) -> None:
        pass


class RunFolder:
    """A run's folder, opened by `create` or `reopen`; one process writes it."""

    def __init__(self, path: Path, tensorboard: TensorboardLog | None) -> None:
        self.path = path
        self._metrics = (path / _METRICS).open("a", encoding="utf-8")
        self._tensorboard = tensorboard

    @classmethod
    def create(
        cls, path: Path, config_toml: str, environment: Mapping[str, JSON], *, tensorboard: bool = False
    ) -> Self:
        """Starts a run; refuses a folder that holds one."""
        if holds_run(path):
            raise ConfigError(
                f"{path} holds a run already; go on with it by --resume auto, or give another --run-dir for a new one"
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
            log = TensorboardLog(path / _TENSORBOARD, 0) if tensorboard else None
            _write_whole(path / _ENVIRONMENT, _dump(environment))
            _write_whole(path / _CONFIG, config_toml)
            return cls(path, log)
        except OSError as error:
            raise ConfigError(f"the run folder {path} cannot be written: {error}; give another --run-dir") from error

    @classmethod
    def reopen(
        cls, path: Path, step: int, config_toml: str, environment: Mapping[str, JSON], *, tensorboard: bool = False
    ) -> Self:
        """Goes on with a run of which `step` steps are done: later rows go, and so does what told of a finished run.

        A configuration or environment that changed stays beside the new one as config-until-step-000001234.toml.
        """
        if not holds_run(path):
            raise ConfigError(f"{path} holds no run to resume; check --run-dir, or leave out --resume")
        try:
            log = TensorboardLog(path / _TENSORBOARD, step) if tensorboard else None
            _replace_keeping(path / _ENVIRONMENT, _dump(environment), step)
            _replace_keeping(path / _CONFIG, config_toml, step)
            _cut(path / _METRICS, step)
            for name in (_RESULT, _INTERRUPTED):
                (path / name).unlink(missing_ok=True)
            return cls(path, log)
        except OSError as error:
            raise ConfigError(f"the run folder {path} cannot be written: {error}; check its permissions") from error

    @property
    def checkpoints(self) -> Path:
        return checkpoints_folder(self.path)

    def log(self, row: MetricsRow) -> None:
        try:
            self._metrics.write(json.dumps(row.to_json(), allow_nan=False) + "\n")
            self._metrics.flush()
        except OSError as error:
            raise _unwritable(self.path / _METRICS, error) from error
        if self._tensorboard:
            self._tensorboard.log(row)

    def sync(self) -> None:
        os.fsync(self._metrics.fileno())

    def write_result(self, result: Mapping[str, JSON]) -> None:
        self._write_mark(_RESULT, result)

    def write_interrupted(self, step: int, signal_name: str) -> None:
        self._write_mark(_INTERRUPTED, {"step": step, "signal": signal_name})

    def close(self) -> None:
        self._metrics.close()
        if self._tensorboard:
            self._tensorboard.close()

    def _write_mark(self, name: str, content: Mapping[str, JSON]) -> None:
        try:
            _write_whole(self.path / name, _dump(content))
        except OSError as error:
            raise _unwritable(self.path / name, error) from error


def holds_run(path: Path) -> bool:
    return any((path / name).exists() for name in (_CONFIG, _METRICS, _RESULT, _CHECKPOINTS))


def checkpoints_folder(path: Path) -> Path:
    """Where the run at `path` keeps its checkpoints."""
    return path / _CHECKPOINTS


def read_rows(path: Path) -> list[MetricsRow]:
    """All rows of the run at `path`, also of one that is still being written."""
    return [row for _, row in _lines(path / _METRICS)]


def _lines(path: Path) -> Iterator[tuple[str, MetricsRow]]:
    """Lines and their rows; a torn last line, which a crash leaves, is passed over."""
    # As bytes: text mode would take a carriage return among torn bytes for the end of a line.
    text = path.read_bytes().decode(errors="replace") if path.exists() else ""
    *complete, _torn = text.split("\n")
    for number, line in enumerate(complete, start=1):
        try:
            yield line, MetricsRow.from_json(json.loads(line))
        except (ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"line {number} of {path} is no metrics row ({error}); correct or remove it"
            ) from error


def _cut(path: Path, step: int) -> None:
    """Keeps the rows up to `step`, less those of the test set: they come once, when a run finishes."""
    kept = (line + "\n" for line, row in _lines(path) if row.step <= step and row.phase != "test")
    _write_whole(path, "".join(kept))


def _replace_keeping(path: Path, text: str, step: int) -> None:
    if path.exists():
        if path.read_bytes() == text.encode():
            return
        path.rename(path.with_name(f"{path.stem}-until-step-{step:09d}{path.suffix}"))
    _write_whole(path, text)


def _unwritable(path: Path, error: OSError) -> TrainingError:
    return TrainingError(f"{path} could not be written: {error}; free some space, then go on by --resume auto")


def _dump(value: Mapping[str, JSON]) -> str:
    return json.dumps(strict_json(value), indent=2, allow_nan=False) + "\n"


def _write_whole(path: Path, text: str) -> None:
    temporary = path.with_name(f".writing-{path.name}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
