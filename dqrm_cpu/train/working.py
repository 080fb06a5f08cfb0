"""A line that says what a command is doing and how far it is, as soon as that takes longer than a moment."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Self, TextIO, TypeAlias

_DELAY_S, _INTERVAL_S = 1.0, 0.5  # on a terminal
_LINE_DELAY_S, _LINE_INTERVAL_S = 10.0, 30.0  # in a log
_CLEAR = "\r\x1b[K"


Advance: TypeAlias = Callable[[int], object]
"""Hears that so much more of a piece of work is done."""

ShowWork: TypeAlias = Callable[[str, int], AbstractContextManager[Advance]]
"""Shows a piece of work while it lasts: what is done, and how much of it there is."""


def untold(count: int) -> None:
    """Tells nobody how much more is done."""


@contextlib.contextmanager
def unshown(text: str, total: int) -> Iterator[Advance]:
    """Shows nothing of a piece of work."""
    yield untold


@contextlib.contextmanager
def working_on(stream: TextIO, text: str, total: int) -> Iterator[Advance]:
    """Shows a piece of work on a stream, as `Working` does."""
    with Working(text, total, stream=stream) as work:
        yield work.advance


class Working:
    """Shows a piece of work while it lasts: `with Working("scoring", rows) as work: ... work.advance(count)`.

    On a terminal the line changes twice a second and goes at the end; in a log there is one now and then. Without a
    total it counts the time alone.
    """

    def __init__(
        self,
        text: str,
        total: int = 0,
        *,
        shown: bool = True,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`shown`: False on ranks for which the first one speaks."""
        self._text, self._total, self._done = text, total, 0
        self._stream = sys.stderr if stream is None else stream
        self._clock, self._began_s, self._advanced_s = clock, clock(), clock()
        self._changes = self._stream.isatty()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._show_until_the_end, daemon=True) if shown else None

    def advance(self, count: int) -> None:
        """Notes that so much more is done. The first of it counts as the beginning: what came before compiled."""
        if not self._done:
            self._advanced_s = self._clock()
        self._done += count

    def line(self) -> str:
        """Writes what is being done, how much of it is, and the time that it took and will take."""
        now = self._clock()
        line = self._text
        if self._total and self._done:
            line += f": {min(self._done / self._total, 1):.0%}"
        line += f", {timedelta(seconds=round(now - self._began_s))}"
        elapsed_s = now - self._advanced_s
        if self._total and self._done and elapsed_s > 1:
            left_s = elapsed_s * max(self._total - self._done, 0) / self._done
            line += f", {timedelta(seconds=round(left_s))} left"
        return line

    def __enter__(self) -> Self:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _show_until_the_end(self) -> None:
        shown, wait_s = False, _DELAY_S if self._changes else _LINE_DELAY_S
        # A terminal that was closed or a full disk ends no work.
        with contextlib.suppress(OSError, ValueError):
            while not self._ended.wait(wait_s):
                shown, wait_s = True, _INTERVAL_S if self._changes else _LINE_INTERVAL_S
                self._stream.write(f"{_CLEAR}{self.line()}" if self._changes else f"{self.line()}\n")
                self._stream.flush()
            if shown and self._changes:
                self._stream.write(_CLEAR)
                self._stream.flush()
