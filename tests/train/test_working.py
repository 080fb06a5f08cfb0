"""The line of a piece of work: what it says, and that it is shown only for work that lasts."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from dqrm_cpu.train import working
from dqrm_cpu.train.checkpoint import CheckpointStore
from dqrm_cpu.train.checkpoint_files import load_checkpoint
from dqrm_cpu.train.progress import open_progress
from dqrm_cpu.train.working import Advance, Working


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_line_counts_the_time_and_what_is_left() -> None:
    now = [100.0]
    work = Working("scoring", 1000, stream=io.StringIO(), clock=lambda: now[0])
    now[0] += 20  # compiles
    assert work.line() == "scoring, 0:00:20"
    work.advance(100)
    now[0] += 10
    work.advance(100)
    assert work.line() == "scoring: 20%, 0:00:30, 0:00:40 left"


def test_without_a_total_it_is_the_time_alone() -> None:
    now = [0.0]
    work = Working("packing", stream=io.StringIO(), clock=lambda: now[0])
    now[0] = 75
    assert work.line() == "packing, 0:01:15"


def test_what_lasts_no_longer_than_a_moment_shows_nothing() -> None:
    stream = Terminal()
    with Working("reading", stream=stream):
        pass
    assert stream.getvalue() == ""


@pytest.mark.parametrize("kind", [Terminal, io.StringIO])
def test_what_lasts_is_shown_and_cleared_away(kind: type[io.StringIO], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_DELAY_S", "_INTERVAL_S", "_LINE_DELAY_S", "_LINE_INTERVAL_S"):
        monkeypatch.setattr(working, name, 0.001)
    stream = kind()
    with Working("reading", stream=stream):
        while "reading" not in stream.getvalue():
            pass
    assert stream.getvalue().endswith("\r\x1b[K" if kind is Terminal else "\n")
    with Working("reading", stream=stream, shown=False) as work:
        work.advance(1)


@pytest.mark.parametrize("kind", [Terminal, io.StringIO])
def test_training_shows_work_between_steps(kind: type[io.StringIO], monkeypatch: pytest.MonkeyPatch) -> None:
    """As a second bar on a terminal, as a line in a log; each once it lasts."""
    for name in ("_DELAY_S", "_INTERVAL_S", "_LINE_DELAY_S", "_LINE_INTERVAL_S"):
        monkeypatch.setattr(working, name, 0.001)
    for name in ("_WORK_DELAY_S", "_WORK_INTERVAL_S"):
        monkeypatch.setattr(f"dqrm_cpu.train.progress.{name}", 0.001)
    stream = kind()
    progress = open_progress(0, 10, stream)
    with progress.show_work("saving step 7", 100) as advance:
        while "saving step 7" not in stream.getvalue():
            pass
        advance(50)
        while "50%" not in stream.getvalue():
            pass
    assert "saving step 7: 50%" in stream.getvalue().replace("  ", " ")


def test_work_on_a_checkpoint_is_told_to_its_last_byte(tmp_path: Path) -> None:
    """Written in shards and read back: `advance` hears of all bytes, also of tensors that are passed over."""
    told: dict[str, list[int]] = {}

    @contextmanager
    def show_work(text: str, total: int) -> Iterator[Advance]:
        done = told.setdefault(text.split()[0], [])
        yield done.append
        assert sum(done) >= total

    tensors = {"table": torch.arange(4000.0).view(1000, 4), "sums": torch.ones(1000)}
    store = CheckpointStore(tmp_path, keep=1, shard_bytes=4096)
    path = store.save(1, tensors, {}, False, show_work)
    assert store.load_newest({name: torch.empty_like(tensor) for name, tensor in tensors.items()}, show_work)
    assert told["saving"] == told["reading"]
    assert len(told["reading"]) > 3
    passed: list[int] = []
    load_checkpoint(path, {"sums": torch.empty(1000)}, allow_unused=True, advance=passed.append)
    assert passed == told["reading"]


def test_a_stream_that_is_gone_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(working, "_LINE_DELAY_S", 0.0)

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with Working("reading", stream=Gone()) as work:
        assert work._thread is not None
        work._thread.join()
