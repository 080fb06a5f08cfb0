"""Progress lines and the bar: throttled, with a last one, and harmless when nobody can read them."""

import io
import re

import pytest

from dqrm_cpu.train.progress import BarProgress, LineProgress, Progress, open_progress


class Clock:
    """A clock that moves only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Gone(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


def _steps(progress: LineProgress | BarProgress, clock: Clock, first: int, last: int, step_s: float) -> None:
    for step in range(first + 1, last + 1):
        clock.now += step_s
        progress.update(step, 1 / step)


def test_a_line_at_most_every_interval_and_a_last_one() -> None:
    clock, stream = Clock(), io.StringIO()
    progress = LineProgress(0, 1000, stream, 10.0, clock)
    _steps(progress, clock, 0, 25, 1.0)  # lines at 10 s and 20 s
    progress.close()
    steps = [int(step) for step in re.findall(r"^step (\d+)/1,000", stream.getvalue(), re.MULTILINE)]
    assert steps == [10, 20, 25]


def test_no_second_last_line() -> None:
    clock, stream = Clock(), io.StringIO()
    progress = LineProgress(0, 10, stream, 10.0, clock)
    _steps(progress, clock, 0, 10, 1.0)
    progress.close()
    assert stream.getvalue().count("step ") == 1


def test_eta_is_the_steps_left_over_the_speed_since_the_resumed_step() -> None:
    clock, stream = Clock(), io.StringIO()
    progress = LineProgress(5000, 6000, stream, 10.0, clock)
    _steps(progress, clock, 5000, 5020, 0.5)  # 2 steps a second, 980 left: 490 s
    assert stream.getvalue() == "step 5,020/6,000 (83.7%)  loss 0.0002  2 steps/s  ETA 0:08:10\n"


def test_speed_follows_a_change() -> None:
    clock, stream = Clock(), io.StringIO()
    progress = LineProgress(0, 10_000, stream, 10.0, clock)
    _steps(progress, clock, 0, 10, 1.0)
    _steps(progress, clock, 10, 50, 0.25)  # 1, then 4 a second: 1 + 0.3 (4 - 1)
    assert re.findall(r"(\S+) steps/s", stream.getvalue()) == ["1", "1.9"]


def test_the_first_step_compiles_and_is_no_part_of_the_eta() -> None:
    clock, stream = Clock(), io.StringIO()
    progress = LineProgress(0, 110, stream, 10.0, clock)
    _steps(progress, clock, 0, 1, 25.0)
    assert stream.getvalue() == ""
    _steps(progress, clock, 1, 12, 1.0)  # a line 10 s later, at step 11, when 99 are left
    assert stream.getvalue() == "step 11/110 (10.0%)  loss 0.0909  1 steps/s  ETA 0:01:39\n"


def test_the_bar_counts_from_the_first_step() -> None:
    clock, stream = Clock(), Terminal()
    progress = BarProgress(3, 110, stream, 10.0, clock)
    _steps(progress, clock, 3, 4, 25.0)
    assert progress._bar.initial == progress._bar.n == 4
    progress.close()
    assert "4/110" in stream.getvalue()


def test_a_run_of_one_step_has_no_speed() -> None:
    clock, stream = Clock(), io.StringIO()
    progress = LineProgress(0, 1, stream, 10.0, clock)
    _steps(progress, clock, 0, 1, 25.0)
    progress.close()
    assert stream.getvalue() == "step 1/1 (100.0%)  loss 1.0000\n"


def test_a_note_is_a_line_of_its_own() -> None:
    stream = io.StringIO()
    LineProgress(0, 10, stream, 10.0).note("validation auc 0.8")
    assert stream.getvalue() == "validation auc 0.8\n"


def test_the_bar_shows_the_last_step_and_keeps_notes() -> None:
    clock, stream = Clock(), Terminal()
    progress = BarProgress(3, 10, stream, 5.0, clock)
    _steps(progress, clock, 3, 10, 0.01)
    assert "10/10" not in stream.getvalue()  # throttled
    progress.note("saved")
    progress.close()
    assert "saved\n" in stream.getvalue()
    assert "10/10" in stream.getvalue()
    assert "loss 0.1000" in stream.getvalue()


def test_the_stream_decides_between_bar_and_lines() -> None:
    bar = open_progress(0, 1, Terminal())
    bar.close()
    assert isinstance(bar, BarProgress)
    assert isinstance(open_progress(0, 1, io.StringIO()), LineProgress)


def test_a_reader_that_went_away_does_not_end_training() -> None:
    clock = Clock()
    progress = LineProgress(0, 10, Gone(), 1.0, clock)
    _steps(progress, clock, 0, 5, 1.0)
    progress.note("text")
    progress.close()


def test_silent_progress_takes_the_same_calls(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress()
    progress.update(1, 0.5)
    progress.note("text")
    progress.close()
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""
