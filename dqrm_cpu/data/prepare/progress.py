"""How far a preparation is: a bar on a terminal, a timed line now and then in a log."""

import contextlib
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TextIO

from tqdm import tqdm

from dqrm_cpu.data.prepare.request import Advance

_BAR_INTERVAL_S = 0.2
_LINE_INTERVAL_S = 10.0


class PrepareProgress:
    """Rows, rows per second, bytes and the time that is left, stage by stage."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._is_bar = stream.isatty()
        self._interval_s = _BAR_INTERVAL_S if self._is_bar else _LINE_INTERVAL_S
        self._bar: Any = None
        self._first: Advance | None = None
        self._last: Advance | None = None
        self._began_s = self._shown_s = clock()

    def advance(self, advance: Advance) -> None:
        """Called after each step; almost always only compares a clock."""
        if self._first is None or advance.stage != self._first.stage:
            self.close()
            self._first, self._began_s = advance, self._clock()
        self._last = advance
        if self._clock() - self._shown_s >= self._interval_s:
            self._show(advance)

    @property
    def reached(self) -> str:
        """How far it came, as part of a sentence."""
        if self._last is None:
            return "before the first rows were safe"
        return f"while {self._last.stage}, after {self._last.rows:,} rows"

    def note(self, text: str) -> None:
        """A line that stays."""
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
            self._bar = tqdm(
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
        done = advance.done_bytes - self._first.done_bytes
        elapsed_s = self._clock() - self._began_s
        left_s = (advance.total_bytes - advance.done_bytes) * elapsed_s / done if done > 0 else float("inf")
        eta = str(timedelta(seconds=round(left_s))) if advance.total_bytes and left_s < 1e9 else "unknown"
        return (
            f"{advance.stage} {advance.rows:,} rows, {advance.done_bytes / 1e9:.2f} GB{share}  "
            f"{rate:,.0f} rows/s  ETA {eta}"
        )

    def _rows_per_s(self, advance: Advance) -> float:
        assert self._first is not None
        elapsed_s = self._clock() - self._began_s
        return (advance.rows - self._first.rows) / elapsed_s if elapsed_s > 0 else 0.0
