"""The folder that records a run: configuration, environment, a metrics row per logged step, and the result.

A resumed run cuts off the rows beyond the step it resumes from, so that metrics.jsonl reads as if never interrupted.
"""

import errno
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import msgspec

from dqrm_cpu.base.decode import Json, UnreadableError, decoded, read_json, read_toml
from dqrm_cpu.base.files import remove_leftovers, replace_file, set_aside, unwritable
from dqrm_cpu.errors import CheckpointError, ConfigError, DqrmError, TrainingError
from dqrm_cpu.train.checkpoint_manifest import canonical
from dqrm_cpu.train.metrics_log import Line, LogMark, MetricsLog, TensorboardLog, cut_log, damages, read_lines, read_log
from dqrm_cpu.train.metrics_row import MetricsRow, strict_json
from dqrm_cpu.train.mlflow_log import MlflowLog
from dqrm_cpu.train.run_place import CONFIG_FILE, METRICS_FILE, RESULT_FILE, checkpoints_folder, holds_run

_ENVIRONMENT = "environment.json"
_INTERRUPTED = "interrupted.json"
_TENSORBOARD = "tensorboard"
_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO}


class _Begun(msgspec.Struct):
    """Holds the field of config.toml that names the run to begin with."""

    init_from: str = ""


class RunLog:
    """The log that the training loop writes to; by itself, as ranks other than the first hold it, it keeps nothing."""

    def log(self, row: MetricsRow) -> str | None:
        """Appends a row; it is with the operating system when this returns, unless a warning does."""
        return None

    def sync(self) -> LogMark | None:
        """Forces the rows to the disk and returns how many they are; before a checkpoint, which keeps that."""
        return None

    def write_result(self, result: Mapping[str, Json]) -> None:
        """Writes result.json, whole or not at all."""

    def write_interrupted(self, step: int, signal_name: str) -> None:
        """Marks the run as incomplete but saved: whoever started it may go on with it."""

    def close(self) -> None:
        """Closes the files."""


class LogCopy(Protocol):
    """Takes the rows of metrics.jsonl for another program."""

    def log(self, row: MetricsRow) -> str | None:
        """Adds a row; returns a warning where that fails, once."""

    def close(self, finished: bool) -> None:
        """Ends it, of a run that has `finished` or may go on."""


def _open_copies(path: Path, step: int, config_toml: str, tensorboard: bool, mlflow: bool) -> list[LogCopy]:
    """Opens what the settings ask for; rows beyond `step` were logged before and come again."""
    copies: list[LogCopy] = [TensorboardLog(path / _TENSORBOARD, step)] if tensorboard else []
    return [*copies, MlflowLog(path, config_toml)] if mlflow else copies


class RunFolder(RunLog):
    """A run's folder, opened by `create` or `reopen`; one process writes it."""

    def __init__(self, path: Path, mark: LogMark, copies: Sequence[LogCopy] = (), warnings: Sequence[str] = ()) -> None:
        self.path = path
        self.warnings = tuple(warnings)
        """Warnings about a log that is damaged."""
        self._metrics = MetricsLog(path / METRICS_FILE, mark)
        self._copies = copies

    @classmethod
    def create(
        cls,
        path: Path,
        config_toml: str,
        environment: Mapping[str, Json],
        *,
        tensorboard: bool = False,
        mlflow: bool = False,
    ) -> Self:
        """Starts a run; refuses a folder that holds one."""
        refuse_run(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            copies = _open_copies(path, 0, config_toml, tensorboard, mlflow)
            write_document(path / _ENVIRONMENT, environment)
            _write_whole(path / CONFIG_FILE, config_toml)
            return cls(path, LogMark(), copies)
        except OSError as error:
            raise _unusable(path, error) from error

    @classmethod
    def reopen(
        cls,
        path: Path,
        step: int,
        config_toml: str,
        environment: Mapping[str, Json],
        *,
        mark: LogMark | None = None,
        tensorboard: bool = False,
        mlflow: bool = False,
    ) -> Self:
        """Goes on with a run of which `step` steps are done: later rows go, and so do the files of a finished run.

        `mark` is what the checkpoint knows of the log; a log that is not so is mended, and `warnings` say how.

        A configuration or environment that changed stays beside the new one as config-until-step-000001234.toml.
        """
        if not holds_run(path):
            raise ConfigError(f"{path} holds no run to resume; check --run-dir, or leave out --resume")
        try:
            remove_leftovers(path)
            copies = _open_copies(path, step, config_toml, tensorboard, mlflow)
            _replace_keeping(path / _ENVIRONMENT, _dump(environment), step)
            _replace_keeping(path / CONFIG_FILE, config_toml, step)
            rows, warnings = cut_log(path / METRICS_FILE, step, mark)
            for name in (RESULT_FILE, _INTERRUPTED):
                (path / name).unlink(missing_ok=True)
            return cls(path, rows, copies, warnings)
        except OSError as error:
            raise _unusable(path, error) from error

    @property
    def checkpoints(self) -> Path:
        return checkpoints_folder(self.path)

    def log(self, row: MetricsRow) -> str | None:
        warning = self._metrics.append((json.dumps(row.to_json(), allow_nan=False) + "\n").encode())
        shown = [copy.log(row) for copy in self._copies]
        return warning or next((text for text in shown if text), None)

    def sync(self) -> LogMark | None:
        return self._metrics.sync()

    def write_result(self, result: Mapping[str, Json]) -> None:
        self._metrics.sync()
        sealed = {**result, "crc32": result_checksum(json.loads(_dump(result)))}
        write_document(self.path / RESULT_FILE, sealed)

    def write_interrupted(self, step: int, signal_name: str) -> None:
        write_document(self.path / _INTERRUPTED, {"step": step, "signal": signal_name})

    def close(self) -> None:
        self._metrics.close()
        for copy in self._copies:
            copy.close((self.path / RESULT_FILE).exists())


def read_result(path: Path) -> dict[str, Json] | None:
    """Reads result.json of the run at `path`; None before it has finished."""
    file = path / RESULT_FILE
    try:
        document: dict[str, Json] = decoded(read_json(file), dict[str, Any])
        if document.get("crc32", result_checksum(document)) != result_checksum(document):
            raise UnreadableError("does not match its own checksum")
    except FileNotFoundError:
        return None
    except (OSError, UnreadableError) as error:
        raise CheckpointError(f"{file} cannot be read (it {error}); restore it") from error
    return document


def refuse_run(path: Path) -> None:
    """Raises ConfigError where the folder holds a run, and a new one is to begin."""
    if holds_run(path):
        raise ConfigError(
            f"{path} holds a run already; go on with it by --resume auto, or give another --run-dir for a new one"
        )


def write_document(path: Path, document: Mapping[str, Json]) -> None:
    """Writes a JSON file of a run folder, whole or not at all."""
    _write_whole(path, _dump(document))


def recorded_init_from(path: Path) -> str:
    """Reads which run the one at `path` was to begin with; empty where it was none, or the settings do not say."""
    try:
        return decoded(read_toml(path / CONFIG_FILE), _Begun).init_from
    except (OSError, UnreadableError):
        return ""


def result_checksum(result: Mapping[str, Json]) -> int:
    """Computes the CRC-32 of everything in result.json but the checksum itself; files of earlier versions have none."""
    return zlib.crc32(canonical({key: value for key, value in result.items() if key != "crc32"}))


def read_rows(path: Path) -> list[MetricsRow]:
    """Reads all rows of the run at `path`, also of one that is being written; a line that is no row is an error."""
    lines = _read_log(path)
    rows = [line.row for line in lines if line.row is not None]
    if len(rows) < len(lines):
        raise CheckpointError(
            f"{path / METRICS_FILE} is damaged: {'; '.join(damages(lines, None))}; correct or remove it"
        )
    return rows


def read_sound_rows(path: Path, mark: LogMark | None) -> tuple[list[MetricsRow], list[str]]:
    """Reads the rows that can be read, and tells what is wrong with others; `mark` is of a checkpoint."""
    lines = _read_log(path)
    return [line.row for line in lines if line.row is not None], damages(lines, mark)


def _read_log(path: Path) -> list[Line]:
    return list(read_lines(read_log(path / METRICS_FILE)))


def _replace_keeping(path: Path, text: str, step: int) -> None:
    if path.exists():
        if path.is_file() and path.read_bytes() == text.encode():
            return
        set_aside(path, f"until-step-{step:09d}")
    _write_whole(path, text)


def _unusable(path: Path, error: OSError) -> DqrmError:
    """Returns the error for a mistake in --run-dir, or a disk that fails."""
    if error.errno in _OF_THE_DISK:
        return unwritable(path, error, TrainingError)
    return ConfigError(f"the run folder {path} cannot be written: {error}; give another --run-dir")


def _dump(value: Mapping[str, Json]) -> str:
    return json.dumps(strict_json(value), indent=2, allow_nan=False) + "\n"


def _write_whole(path: Path, text: str) -> None:
    replace_file(path, [text.encode()], TrainingError)
