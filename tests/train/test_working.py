"""The line of a piece of work: what it says, and that it is shown only for work that lasts."""

import io

import pytest

from dqrm_cpu.cli import working
from dqrm_cpu.cli.working import Working


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


def test_a_stream_that_is_gone_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(working, "_LINE_DELAY_S", 0.0)

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with Working("reading", stream=Gone()) as work:
        assert work._thread is not None
        work._thread.join()
