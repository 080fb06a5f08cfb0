"""metrics.jsonl: appended row by row, checked against what a checkpoint counted, mended where it was damaged.

A row that the disk does not take stays in memory and is tried again with the next one, and before each checkpoint.
Every checkpoint records how many rows there were, and a checksum of their bytes: a resumed run cuts the log to exactly
those. Where they are not there as they were, the rows that can be read are kept, and so is the file as it was found.

TensorBoard shows the same rows, where it is installed and asked for.
"""

import contextlib
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dqrm_cpu.base.decode import Json, UnreadableError, decoded, parse_json
from dqrm_cpu.base.files import open_regular, replace_file, unwritable
from dqrm_cpu.errors import CheckpointError, DeviceError, TrainingError
from dqrm_cpu.train.metrics_row import MetricsRow

_SHOWN = 5


@dataclass(frozen=True)
class LogMark:
    """The length of the log when a checkpoint was saved: the number of its rows, and the CRC-32 of their bytes."""

    rows: int = 0
    crc32: int = 0

    @classmethod
    def of_state(cls, state: Mapping[str, Json]) -> "LogMark | None":
        """Reads the mark in a checkpoint's state; None in those of earlier versions."""
        try:
            return decoded(state["log"], cls)
        except (KeyError, UnreadableError):
            return None

    def plus(self, row: bytes) -> "LogMark":
        """Returns the mark after one row more."""
        return LogMark(self.rows + 1, zlib.crc32(row, self.crc32))


class MetricsLog:
    """The log of a run that goes on; `mark` is that of the rows in the file."""

    def __init__(self, path: Path, mark: LogMark) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._synced, self._synced_bytes = mark, os.fstat(self._descriptor).st_size
        # Since the last sync that succeeded: after one that failed nobody knows which bytes the disk has.
        self._rows: list[bytes] = []
        self._num_written = 0
        self._torn = False
        self._warned = False

    def append(self, row: bytes) -> str | None:
        """Writes a row; returns a warning if the disk refuses it for the first time since it took one."""
        self._rows.append(row)
        try:
            self._write()
        except OSError as error:
            warned, self._warned = self._warned, True
            return None if warned else f"{unwritable(self._path, error, TrainingError)}; its rows wait in memory"
        self._warned = False
        return None

    def sync(self) -> LogMark:
        """Forces all rows to the disk."""
        try:
            self._write()
            os.fsync(self._descriptor)
        except OSError as error:
            self._num_written, self._torn = 0, True
            raise unwritable(self._path, error, TrainingError) from error
        for row in self._rows:
            self._synced = self._synced.plus(row)
            self._synced_bytes += len(row)
        self._rows, self._num_written = [], 0
        return self._synced

    def close(self) -> None:
        """Closes the file; what had to be kept was forced to the disk before: a disk that fails now is no news."""
        with contextlib.suppress(OSError):
            os.close(self._descriptor)

    def _write(self) -> None:
        if self._torn:
            os.ftruncate(self._descriptor, self._synced_bytes + sum(map(len, self._rows[: self._num_written])))
            self._torn = False
        for row in self._rows[self._num_written :]:
            self._torn = True  # until the whole row is there
            left = memoryview(row)
            while left:
                left = left[os.write(self._descriptor, left) :]
            self._torn = False
            self._num_written += 1


class TensorboardLog:
    """The rows of metrics.jsonl as TensorBoard scalars, one chart per figure and phase."""

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise DeviceError(
                "TensorBoard is not installed; run pip install 'dqrm-cpu[report]' or leave out --train.tensorboard"
            ) from error
        # Whatever an interrupted run logged beyond its last checkpoint is hidden.
        self._folder = folder
        self._writer = SummaryWriter(str(folder), purge_step=step + 1)
        self._broken = False

    def log(self, row: MetricsRow) -> str | None:
        """Adds a row; returns a warning when the disk refuses it: from then on nothing is added any more."""
        if self._broken:
            return None
        try:
            for name, value in row.to_json().items():
                if name not in ("step", "phase", "examples", "logged_at") and isinstance(value, int | float):
                    self._writer.add_scalar(f"{row.phase}/{name}", value, row.step)
        except OSError as error:
            self._broken = True
            return (
                f"{unwritable(self._folder, error, TrainingError)}; TensorBoard shows nothing of this run from step "
                f"{row.step:,} on, metrics.jsonl still does"
            )
        return None

    def close(self, finished: bool) -> None:
        """Closes the file; its rows are in metrics.jsonl: a disk that fails now is no reason to lose anything else."""
        with contextlib.suppress(OSError):
            self._writer.close()


def read_log(path: Path) -> bytes:
    """Reads all bytes of a log; none where there is no file. OSError for what is no file: a device has no end."""
    try:
        with open_regular(path) as file:
            return file.read()
    except FileNotFoundError:
        return b""


class Line(NamedTuple):
    """A complete line of a log; `row` is None where it cannot be read, and then `damage` says why."""

    content: bytes
    row: MetricsRow | None
    damage: str


def read_lines(content: bytes) -> Iterator[Line]:
    """Yields the complete lines; a torn last one, which a crash leaves, is passed over."""
    *complete, _torn = content.split(b"\n")
    for text in complete:
        try:
            yield Line(text + b"\n", MetricsRow.from_json(parse_json(text)), "")
        except UnreadableError as error:
            yield Line(text + b"\n", None, str(error))


def damages(lines: list[Line], mark: LogMark | None) -> list[str]:
    """Lists what is wrong with a log of which a checkpoint knows `mark`; nothing: it is whole."""
    mistakes, reached = [], 0
    for number, line in enumerate(lines, start=1):
        if line.row is None:
            mistakes.append(f"line {number}, after step {reached:,}, {line.damage}")
        else:
            reached = line.row.step
    if mark is not None and mark_of(line.content for line in lines[: mark.rows]) != mark:
        if len(lines) < mark.rows:
            mistakes.append(
                f"it had {mark.rows:,} rows at the last checkpoint and has {len(lines):,}, to step {reached:,}"
            )
        elif not mistakes:
            mistakes.append(f"a number in one of its first {mark.rows:,} rows is not the one that was written")
    return [*mistakes[:_SHOWN], f"and {len(mistakes) - _SHOWN} more"] if len(mistakes) > _SHOWN else mistakes


def mark_of(rows: "Iterator[bytes] | list[bytes]") -> LogMark:
    mark = LogMark()
    for row in rows:
        mark = mark.plus(row)
    return mark


def cut_log(path: Path, step: int, mark: LogMark | None) -> tuple[LogMark, list[str]]:
    """Leaves the rows that the checkpoint of `step` has seen; returns their mark, and warnings of lost ones."""
    content = read_log(path)
    rows = content.split(b"\n", mark.rows)[: mark.rows] if mark is not None else []
    prefix = b"".join(row + b"\n" for row in rows)
    # A log that was cut just before a line end has the right rows, and the next one would be joined to the last.
    whole = content.startswith(prefix)
    if mark is not None and whole and len(rows) == mark.rows and zlib.crc32(prefix) == mark.crc32:
        if len(content) != len(prefix):
            _truncate(path, len(prefix))
        return mark, []
    lines = list(read_lines(content))
    # Without those of the test set: they come once, when a run finishes.
    kept = [line for line in lines if line.row and line.row.step <= step and line.row.phase != "test"]
    wrong = damages(lines, mark)
    warnings = []
    if wrong:
        saved = _free_name(path, step)
        replace_file(saved, [content], CheckpointError)
        warnings = [
            f"{path} is damaged: {'; '.join(wrong)}. {len(kept):,} rows can be read and stay, what is lost is lost for "
            f"curves and reports only, not for the model; the file as it was is {saved.name}"
        ]
    replace_file(path, [line.content for line in kept], CheckpointError)
    return mark_of([line.content for line in kept]), warnings


def _truncate(path: Path, num_bytes: int) -> None:
    """Truncates in place: a full disk takes that too."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.ftruncate(descriptor, num_bytes)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free_name(path: Path, step: int) -> Path:
    base = f"{path.stem}-damaged-until-step-{step:09d}"
    numbered = (path.with_name(f"{base}{f'.{number}' if number else ''}{path.suffix}") for number in range(10**6))
    return next(name for name in numbered if not name.exists())
