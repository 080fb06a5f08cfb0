"""The log of a run: rows that wait for a disk, damage that is found, told and mended."""

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dqrm_cpu.errors import TrainingError
from dqrm_cpu.train.metrics_log import LogMark, MetricsLog, cut_log, damages, read_lines
from dqrm_cpu.train.metrics_row import MetricsRow

STEPS = range(5, 65, 5)


def line(step: int, loss: float = 0.5) -> bytes:
    return (json.dumps(MetricsRow(step, 1, "train", loss, 1000.0, 0.1).to_json()) + "\n").encode()


def written(path: Path, *steps: int) -> LogMark:
    log = MetricsLog(path, LogMark())
    for step in steps:
        assert log.append(line(step)) is None
    mark = log.sync()
    log.close()
    return mark


def steps_in(path: Path) -> list[int]:
    return [line.row.step for line in read_lines(path.read_bytes()) if line.row]


class Disk:
    """Stands for os.write and os.fsync; refuses while it is full, after taking the first bytes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = False
        self._write, self._fsync = os.write, os.fsync
        monkeypatch.setattr(os, "write", self.write)
        monkeypatch.setattr(os, "fsync", self.fsync)

    def write(self, descriptor: int, content: memoryview) -> int:
        if self.full and len(content) <= 10:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._write(descriptor, content[:-10] if self.full else content)

    def fsync(self, descriptor: int) -> None:
        if self.full:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._fsync(descriptor)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def test_rows_that_a_full_disk_refuses_come_once_it_takes_them(tmp_path: Path, disk: Disk) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", LogMark())
    log.append(line(1))
    disk.full = True
    assert "No space left" in (log.append(line(2)) or "")
    assert log.append(line(3)) is None, "it is told once"
    with pytest.raises(TrainingError, match=r"metrics\.jsonl cannot be written"):
        log.sync()
    disk.full = False
    log.append(line(4))
    mark = log.sync()
    log.close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(map(line, (1, 2, 3, 4)))
    assert mark == written(tmp_path / "whole", 1, 2, 3, 4)


def test_rows_of_a_sync_that_failed_are_written_again(tmp_path: Path, disk: Disk) -> None:
    """The disk may have dropped any of them, and would say of the next sync that all is well."""
    log = MetricsLog(tmp_path / "metrics.jsonl", LogMark())
    log.append(line(1))
    log.sync()
    log.append(line(2))
    disk.full = True
    with pytest.raises(TrainingError, match="Input/output error"):
        log.sync()
    disk.full = False
    content = (tmp_path / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").write_bytes(content[:-1] + b"\0")
    log.sync()
    log.close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == line(1) + line(2)


def test_closing_says_nothing_of_a_disk_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", LogMark())

    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "close", broken)
        log.close()
    log.close()


def test_a_whole_log_is_cut_to_what_the_checkpoint_has_seen(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    mark = written(path, *STEPS)
    with path.open("ab") as file:
        file.write(line(99) + b'{"step": 100, "torn')
    assert cut_log(path, 60, mark) == (mark, [])
    assert steps_in(path) == list(STEPS)
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_line_that_cannot_be_read_is_told_and_the_file_is_kept_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    mark = written(path, *STEPS)
    damaged = path.read_bytes().replace(b'"step": 25', b'"step": \xff5')
    path.write_bytes(damaged)
    found, warnings = cut_log(path, 60, mark)
    assert "line 5, after step 20, is no JSON" in warnings[0]
    assert "metrics-damaged-until-step-000000060.jsonl" in warnings[0]
    assert (tmp_path / "metrics-damaged-until-step-000000060.jsonl").read_bytes() == damaged
    assert steps_in(path) == [step for step in STEPS if step != 25]
    assert found.rows == len(STEPS) - 1


def test_a_log_cut_short_is_told(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    mark = written(path, *STEPS)
    path.write_bytes(b"".join(map(line, (5, 10, 15))))
    _, warnings = cut_log(path, 60, mark)
    assert "it had 12 rows at the last checkpoint and has 3, to step 15" in warnings[0]


def test_another_number_in_a_good_row_is_told(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    mark = written(path, *STEPS)
    path.write_bytes(path.read_bytes().replace(b"0.5", b"0.7", 1))
    _, warnings = cut_log(path, 60, mark)
    assert "a number in one of its first 12 rows is not the one that was written" in warnings[0]


def test_a_checkpoint_of_an_earlier_version_knows_no_mark(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    written(path, *STEPS)
    assert LogMark.of_state({"step": 60}) is None
    _, warnings = cut_log(path, 30, None)
    assert warnings == []
    assert steps_in(path) == list(range(5, 35, 5))


@pytest.fixture(scope="module")
def whole() -> Iterator[bytes]:
    yield b"".join(map(line, STEPS))


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 10**6), st.integers(0, 7) | st.none())
@example(len(b"".join(map(line, STEPS))) - 1, None)
def test_any_flipped_bit_and_any_truncation_is_told_and_never_stops_a_run(
    whole: bytes, place: int, bit: int | None
) -> None:
    at = place % len(whole)
    content = bytearray(whole)
    if bit is None:
        del content[at:]
    else:
        content[at] ^= 1 << bit
    with TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        mark = written(path, *STEPS)
        path.write_bytes(content)
        assert damages(list(read_lines(bytes(content))), mark)
        found, warnings = cut_log(path, 60, mark)
        assert warnings
        assert (Path(folder) / "metrics-damaged-until-step-000000060.jsonl").read_bytes() == content
        assert set(steps_in(path)) - set(STEPS) == set() or bit is not None
        log = MetricsLog(path, found)
        log.append(line(65))
        assert cut_log(path, 65, log.sync())[1] == []
        log.close()
