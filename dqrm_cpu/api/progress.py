"""How far a call is: bars on a terminal and in a notebook, lines in a log, or nothing."""

import contextlib
import io
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, TextIO

from tqdm import tqdm

from dqrm_cpu.base.memory import format_size
from dqrm_cpu.data.prepare.request import Advance
from dqrm_cpu.train.progress import BarProgress, Progress, open_progress
from dqrm_cpu.train.working import working_on

_BAR_INTERVAL_S = 0.2
_LINE_INTERVAL_S = 10.0


class PrepareProgress:
    """Shows rows, rows per second, bytes and the time that is left, stage by stage: as a bar or as lines of a log."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic, make_bar: Any = None) -> None:
        """`make_bar`: the class of the bar that is drawn, which need not be on a terminal."""
        self._stream, self._clock, self._make_bar = stream, clock, make_bar or tqdm
        self._is_bar = make_bar is not None or stream.isatty()
        self._interval_s = _BAR_INTERVAL_S if self._is_bar else _LINE_INTERVAL_S
        self._bar: Any = None
        self._first: Advance | None = None
        self._last: Advance | None = None
        self._began_s = self._shown_s = clock()

    def advance(self, advance: Advance) -> None:
        """Takes a report; almost always only compares a clock."""
        if self._first is None or advance.stage != self._first.stage:
            self.close()
            self._first, self._began_s = advance, self._clock()
        self._last = advance
        if self._clock() - self._shown_s >= self._interval_s:
            self._show(advance)

    @property
    def reached(self) -> str:
        """Says how far it came, as part of a sentence."""
        if self._last is None:
            return "before the first rows were safe"
        return f"while {self._last.stage}, after {self._last.rows:,} rows"

    def note(self, text: str) -> None:
        """Writes a line that stays."""
        with contextlib.suppress(OSError):
            if self._bar is not None:
                tqdm.write(text, file=self._stream)
            else:
                self._stream.write(text + "\n")
                self._stream.flush()

    def close(self) -> None:
        """Ends the bar at what was reached."""
        if self._bar is not None:
            if self._last is not None:
                self._show(self._last)
            with contextlib.suppress(OSError):
                self._bar.close()
            self._bar = None

    def _show(self, advance: Advance) -> None:
        self._shown_s = self._clock()
        rate = self._rows_per_s(advance)
        # A full disk or a reader that went away must not end hours of work.
        with contextlib.suppress(OSError):
            if self._is_bar:
                self._show_bar(advance, rate)
            else:
                self._stream.write(self._line(advance, rate) + "\n")
                self._stream.flush()

    def _show_bar(self, advance: Advance, rate: float) -> None:
        if self._bar is None:
            self._bar = self._make_bar(
                total=advance.total_bytes or None,
                file=self._stream,
                unit="B",
                unit_scale=True,
                desc=advance.stage,
                mininterval=0,
                miniters=1,
                dynamic_ncols=True,
            )
        self._bar.total = advance.total_bytes or None
        self._bar.set_postfix_str(f"{advance.rows:,} rows, {rate:,.0f} rows/s", refresh=False)
        self._bar.update(advance.done_bytes - self._bar.n)

    def _line(self, advance: Advance, rate: float) -> str:
        assert self._first is not None
        share = f" ({advance.done_bytes / advance.total_bytes:.1%})" if advance.total_bytes else ""
        line = f"{advance.stage} {advance.rows:,} rows, {format_size(advance.done_bytes)}{share}"
        done = advance.done_bytes - self._first.done_bytes
        if done <= 0:  # the first report: until then something was compiled, and no speed is known
            return line
        line += f"  {rate:,.0f} rows/s"
        if advance.total_bytes:
            left_s = (advance.total_bytes - advance.done_bytes) * (self._clock() - self._began_s) / done
            line += f"  ETA {timedelta(seconds=round(left_s))}"
        return line

    def _rows_per_s(self, advance: Advance) -> float:
        assert self._first is not None
        elapsed_s = self._clock() - self._began_s
        return (advance.rows - self._first.rows) / elapsed_s if elapsed_s > 0 else 0.0


class Silence(io.TextIOBase):
    """A stream that shows nothing."""

    def write(self, text: str) -> int:
        """Takes the text."""
        return len(text)


class CallProgress:
    """The progress of one call from Python: a bar where it can be drawn, or nothing where it was not asked for."""

    def __init__(self, shown: bool) -> None:
        self._shown = shown
        self._make_bar = _notebook_bar() if shown else None
        self.stream: Any = Silence() if not shown else sys.stderr if self._make_bar is None else sys.stdout

    def open(self, first_step: int, total_steps: int, stream: TextIO) -> Progress:
        """Opens the progress of training, as `dqrm_cpu.train.progress.open_progress` does."""
        if not self._shown:
            return Progress()
        if self._make_bar is None:
            return open_progress(first_step, total_steps, stream)
        return BarProgress(first_step, total_steps, stream, make_bar=self._make_bar)

    def show_work(self, text: str, total: int) -> AbstractContextManager[Callable[[int], object]]:
        """Shows a piece of work, such as the reading of a large model."""
        return working_on(self.stream, text, total)

    def of_rows(self) -> PrepareProgress:
        """Makes the progress of reading rows."""
        return PrepareProgress(self.stream, make_bar=self._make_bar)


def _notebook_bar() -> Any:
    """Returns the class of bars that the notebook draws which this process belongs to; None where there is none."""
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", None)
    if getattr(get_ipython and get_ipython(), "kernel", None) is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a bar of text stands in where ipywidgets is not installed
        from tqdm.auto import tqdm as notebook_bar
    return notebook_bar
