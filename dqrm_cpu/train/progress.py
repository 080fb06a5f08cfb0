"""How far training is and when it will be done: a bar on a terminal, a timed line now and then in a log."""

import contextlib
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Protocol, TextIO

from tqdm import tqdm

_BAR_INTERVAL_S = 0.2
_NEWEST_WEIGHT = 0.3  # of the newest interval in the smoothed speed


class Progress(Protocol):
    """What the training loop reports to; ranks that show nothing hold a `NoProgress`."""

    def update(self, step: int, loss: float) -> None:
        """After each step. Almost always only compares a clock."""

    def note(self, text: str) -> None:
        """A line that stays, such as the metrics of an evaluation."""

    def warn(self, text: str) -> None:
        """A line that stays, of something that went wrong and does not end the run."""

    def close(self) -> None:
        """Shows the last step, once."""


class NoProgress:
    """Shows nothing."""

    def update(self, step: int, loss: float) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


class OnlyWarnings(NoProgress):
    """What ranks beyond the first show."""

    def __init__(self, rank: int, stream: TextIO) -> None:
        self._rank = rank
        self._stream = stream

    def warn(self, text: str) -> None:
        _write(self._stream, f"rank {self._rank}: warning: {text}")


def open_progress(first_step: int, total_steps: int, stream: TextIO, interval_s: float = 10.0) -> Progress:
    """A bar if `stream` is a terminal, else a line at most every `interval_s`; `first_step` steps are done already."""
    if stream.isatty():
        return BarProgress(first_step, total_steps, stream)
    return LineProgress(first_step, total_steps, stream, interval_s)


class LineProgress:
    """Plain lines for logs."""

    def __init__(
        self,
        first_step: int,
        total_steps: int,
        stream: TextIO,
        interval_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._total = total_steps
        self._interval_s = interval_s
        self._clock = clock
        self._step, self._loss = first_step, float("nan")
        self._shown_step, self._shown_s = first_step, clock()
        self._steps_per_s = 0.0

    def update(self, step: int, loss: float) -> None:
        self._step, self._loss = step, loss
        if self._clock() - self._shown_s >= self._interval_s:
            self._show()

    def note(self, text: str) -> None:
        _write(self._stream, text)

    def warn(self, text: str) -> None:
        self.note(f"warning: {text}")

    def close(self) -> None:
        if self._step != self._shown_step:
            self._show()

    def _show(self) -> None:
        now = self._clock()
        elapsed_s = max(now - self._shown_s, 1e-9)
        speed = (self._step - self._shown_step) / elapsed_s
        weight = _NEWEST_WEIGHT if self._steps_per_s else 1.0
        self._steps_per_s += weight * (speed - self._steps_per_s)
        self._shown_step, self._shown_s = self._step, now
        _write(self._stream, self._line())

    def _line(self) -> str:
        share = self._step / self._total if self._total else 1.0
        left_s = (self._total - self._step) / self._steps_per_s if self._steps_per_s > 0 else float("inf")
        return (
            f"step {self._step:,}/{self._total:,} ({share:.1%})  loss {self._loss:.4f}  "
            f"{self._steps_per_s:.3g} steps/s  ETA {_duration(left_s)}"
        )


class BarProgress:
    """A tqdm bar. Throttled here too, because formatting the loss costs more than tqdm's own check."""

    def __init__(
        self,
        first_step: int,
        total_steps: int,
        stream: TextIO,
        interval_s: float = _BAR_INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._interval_s = interval_s
        self._clock = clock
        self._step, self._loss = first_step, float("nan")
        self._shown_s = clock()
        self._bar: Any = tqdm(
            total=total_steps,
            initial=first_step,
            file=stream,
            unit="step",
            mininterval=0,
            miniters=1,
            dynamic_ncols=True,
        )

    def update(self, step: int, loss: float) -> None:
        self._step, self._loss = step, loss
        if self._clock() - self._shown_s >= self._interval_s:
            self._show()

    def note(self, text: str) -> None:
        with contextlib.suppress(OSError):
            tqdm.write(text, file=self._stream)

    def warn(self, text: str) -> None:
        self.note(f"warning: {text}")

    def close(self) -> None:
        if self._bar.n != self._step:
            self._show()
        with contextlib.suppress(OSError):
            self._bar.close()

    def _show(self) -> None:
        self._shown_s = self._clock()
        with contextlib.suppress(OSError):
            self._bar.set_postfix_str(f"loss {self._loss:.4f}", refresh=False)
            self._bar.update(self._step - self._bar.n)


def _write(stream: TextIO, text: str) -> None:
    # A full disk or a reader that went away must not end days of training.
    with contextlib.suppress(OSError):
        stream.write(text + "\n")
        stream.flush()


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds))) if seconds < 1e9 else "unknown"
