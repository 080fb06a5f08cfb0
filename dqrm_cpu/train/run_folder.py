"""The folder that records a run: configuration, environment, a metrics row per logged step, and the result.

A resumed run cuts off the rows beyond the step it resumes from, so that metrics.jsonl reads as if never interrupted.
"""

import errno
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, Self

from dqrm_cpu.base.files import remove_leftovers, replace_file, unwritable
from dqrm_cpu.errors import CheckpointError, ConfigError, DqrmError, TrainingError
from dqrm_cpu.train.checkpoint_manifest import JSON, canonical
from dqrm_cpu.train.metrics_log import Line, LogMark, MetricsLog, cut_log, damages, read_lines, read_log
from dqrm_cpu.train.metrics_row import MetricsRow, strict_json
from dqrm_cpu.train.tensorboard import TensorboardLog

_CONFIG, _ENVIRONMENT, _METRICS, _RESULT = "config.toml", "environment.json", "metrics.jsonl", "result.json"
_INTERRUPTED = "interrupted.json"
_CHECKPOINTS, _TENSORBOARD = "checkpoints", "tensorboard"
_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO}


class RunLog(Protocol):
    """What the training loop writes to; ranks other than the first hold a `NoRunLog`."""

    def log(self, row: MetricsRow) -> str | None:
        """Appends a row; it is with the operating system when this returns, unless there is something to tell."""

    def sync(self) -> LogMark | None:
        """Forces the rows to the disk and returns how many they are; before a checkpoint, which keeps that."""

    def write_result(self, result: Mapping[str, JSON]) -> None:
        """Writes result.json, whole or not at all."""

    def write_interrupted(self, step: int, signal_name: str) -> None:
        """Marks the run as incomplete but saved: whoever started it may go on with it."""

    def close(self) -> None: ...


class NoRunLog:
    """Keeps nothing."""

    def log(self, row: MetricsRow) -> str | None:
        return None

    def sync(self) -> LogMark | None:
        return None

    def write_result(self, result: Mapping[str, JSON]) -> None:
        pass

    def write_interrupted(self, step: int, signal_name: str) -> None:
        pass

    def close(self) -> None:
        pass


class RunFolder:
    """A run's folder, opened by `create` or `reopen`; one process writes it."""

    def __init__(
        self, path: Path, mark: LogMark, tensorboard: TensorboardLog | None, warnings: Sequence[str] = ()
    ) -> None:
        self.path = path
        self.warnings = tuple(warnings)
        """What to tell of a log that was found damaged."""
        self._metrics = MetricsLog(path / _METRICS, mark)
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
            return cls(path, LogMark(), log)
        except OSError as error:
            raise _unusable(path, error) from error

    @classmethod
    def reopen(
        cls,
        path: Path,
        step: int,
        config_toml: str,
        environment: Mapping[str, JSON],
        *,
        mark: LogMark | None = None,
        tensorboard: bool = False,
    ) -> Self:
        """Goes on with a run of which `step` steps are done: later rows go, and so does what told of a finished run.

        `mark` is what the checkpoint knows of the log; a log that is not so is mended, and `warnings` say how.

        A configuration or environment that changed stays beside the new one as config-until-step-000001234.toml.
        """
        if not holds_run(path):
            raise ConfigError(f"{path} holds no run to resume; check --run-dir, or leave out --resume")
        try:
            remove_leftovers(path)
            log = TensorboardLog(path / _TENSORBOARD, step) if tensorboard else None
            _replace_keeping(path / _ENVIRONMENT, _dump(environment), step)
            _replace_keeping(path / _CONFIG, config_toml, step)
            found, warnings = cut_log(path / _METRICS, step, mark)
            for name in (_RESULT, _INTERRUPTED):
                (path / name).unlink(missing_ok=True)
            return cls(path, found, log, warnings)
        except OSError as error:
            raise _unusable(path, error) from error

    @property
    def checkpoints(self) -> Path:
        return checkpoints_folder(self.path)

    def log(self, row: MetricsRow) -> str | None:
        told = self._metrics.append((json.dumps(row.to_json(), allow_nan=False) + "\n").encode())
        shown = self._tensorboard.log(row) if self._tensorboard else None
        return told or shown

    def sync(self) -> LogMark | None:
        return self._metrics.sync()

    def write_result(self, result: Mapping[str, JSON]) -> None:
        self._metrics.sync()
        sealed = {**result, "crc32": result_checksum(json.loads(_dump(result)))}
        _write_whole(self.path / _RESULT, _dump(sealed))

    def write_interrupted(self, step: int, signal_name: str) -> None:
        _write_whole(self.path / _INTERRUPTED, _dump({"step": step, "signal": signal_name}))

    def close(self) -> None:
        self._metrics.close()
        if self._tensorboard:
            self._tensorboard.close()


def holds_run(path: Path) -> bool:
    return any((path / name).exists() for name in (_CONFIG, _METRICS, _RESULT, _CHECKPOINTS))


def result_checksum(result: Mapping[str, JSON]) -> int:
    """CRC-32 of everything in result.json but the checksum itself; files of earlier versions have none."""
    return zlib.crc32(canonical({key: value for key, value in result.items() if key != "crc32"}))


def checkpoints_folder(path: Path) -> Path:
    """Where the run at `path` keeps its checkpoints."""
    return path / _CHECKPOINTS


def read_rows(path: Path) -> list[MetricsRow]:
    """All rows of the run at `path`, also of one that is still being written; a line that is no row is an error."""
    lines = _read_log(path)
    rows = [line.row for line in lines if line.row is not None]
    if len(rows) < len(lines):
        raise CheckpointError(f"{path / _METRICS} is damaged: {'; '.join(damages(lines, None))}; correct or remove it")
    return rows


def read_sound_rows(path: Path, mark: LogMark | None) -> tuple[list[MetricsRow], list[str]]:
    """The rows that can be read, and what is wrong with the others; `mark` is what a checkpoint knows of them."""
    lines = _read_log(path)
    return [line.row for line in lines if line.row is not None], damages(lines, mark)


def _read_log(path: Path) -> list[Line]:
    return list(read_lines(read_log(path / _METRICS)))


def _replace_keeping(path: Path, text: str, step: int) -> None:
    if path.exists():
        if path.is_file() and path.read_bytes() == text.encode():
            return
        path.rename(path.with_name(f"{path.stem}-until-step-{step:09d}{path.suffix}"))
    _write_whole(path, text)


def _unusable(path: Path, error: OSError) -> DqrmError:
    """A mistake in --run-dir, or a disk that fails."""
    if error.errno in _OF_THE_DISK:
        return unwritable(path, error, TrainingError)
    return ConfigError(f"the run folder {path} cannot be written: {error}; give another --run-dir")


def _dump(value: Mapping[str, JSON]) -> str:
    return json.dumps(strict_json(value), indent=2, allow_nan=False) + "\n"


def _write_whole(path: Path, text: str) -> None:
    replace_file(path, [text.encode()], TrainingError)
