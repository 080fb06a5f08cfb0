"""How far training is and when it will be done: a bar on a terminal, a timed line now and then in a log."""

import contextlib
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, TextIO

from tqdm import tqdm

from dqrm_cpu.train.working import Advance, unshown, working_on

_LOGGER = logging.getLogger(__name__)

_BAR_INTERVAL_S = 0.2
_WORK_DELAY_S, _WORK_INTERVAL_S = 1.0, 0.5  # of a bar below that of the steps
_NEWEST_WEIGHT = 0.3  # of the newest interval in the smoothed speed


class Progress:
    """The progress that the training loop reports; by itself it shows nothing, and only logs lines that stay."""

    def update(self, step: int, loss: float) -> None:
        """Notes a step that is done. Almost always only compares a clock."""

    def note(self, text: str) -> None:
        """Shows a line that stays, such as the metrics of an evaluation."""
        _LOGGER.info(text)

    def warn(self, text: str, *, alike: bool = False) -> None:
        """Shows a line that stays, of something that went wrong and does not end the run.

        `alike` where every rank warns of it: then the first one is enough.
        """
        _LOGGER.warning(text)

    def show_work(self, text: str, total: int) -> AbstractContextManager[Advance]:
        """Shows a piece of work between steps, such as saving, while it lasts."""
        return unshown(text, total)

    def close(self) -> None:
        """Shows the last step, once."""


class OnlyWarnings(Progress):
    """The progress of ranks beyond the first, which shows warnings alone."""

    def __init__(self, rank: int, stream: TextIO) -> None:
        self._rank = rank
        self._stream = stream

    def note(self, text: str) -> None:
        return

    def warn(self, text: str, *, alike: bool = False) -> None:
        if alike:
            return
        super().warn(text)
        write_line(self._stream, f"rank {self._rank}: warning: {text}")


class TimedProgress(Progress, ABC):
    """Progress on a stream, at most every `interval_s`; formatting the loss costs more than comparing a clock."""

    def __init__(self, first_step: int, stream: TextIO, interval_s: float, clock: Callable[[], float]) -> None:
        self._stream = stream
        self._interval_s = interval_s
        self._clock = clock
        self._step, self._loss = first_step, float("nan")
        self._shown_s = clock()
        self._is_timed = False

    def update(self, step: int, loss: float) -> None:
        self._step, self._loss = step, loss
        if not self._is_timed:
            self._is_timed = True
            self._begin_timing()
        elif self._clock() - self._shown_s >= self._interval_s:
            self._show()

    def note(self, text: str) -> None:
        super().note(text)
        self._write(text)

    def warn(self, text: str, *, alike: bool = False) -> None:
        super().warn(text)
        self._write(f"warning: {text}")

    @abstractmethod
    def _begin_timing(self) -> None:
        """Takes the end of the first step for the beginning of the others: it compiled, and says nothing of them."""

    @abstractmethod
    def _show(self) -> None:
        """Shows the step that was noted last."""

    @abstractmethod
    def _write(self, text: str) -> None:
        """Writes a line that stays."""


class LineProgress(TimedProgress):
    """Plain lines for logs."""

    def __init__(
        self,
        first_step: int,
        total_steps: int,
        stream: TextIO,
        interval_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(first_step, stream, interval_s, clock)
        self._total = total_steps
        self._shown_step = self._timed_step = first_step
        self._timed_s = self._shown_s
        self._steps_per_s = 0.0

    def _write(self, text: str) -> None:
        write_line(self._stream, text)

    def show_work(self, text: str, total: int) -> AbstractContextManager[Advance]:
        return working_on(self._stream, text, total)

    def close(self) -> None:
        if self._step != self._shown_step:
            self._show()

    def _begin_timing(self) -> None:
        self._timed_step, self._timed_s = self._step, self._clock()
        if self._timed_s - self._shown_s >= self._interval_s:
            self._shown_s = self._timed_s

    def _show(self) -> None:
        now = self._clock()
        speed = (self._step - self._timed_step) / max(now - self._timed_s, 1e-9)
        weight = _NEWEST_WEIGHT if self._steps_per_s else 1.0
        self._steps_per_s += weight * (speed - self._steps_per_s)
        self._shown_step = self._timed_step = self._step
        self._shown_s = self._timed_s = now
        share = self._step / self._total if self._total else 1.0
        line = f"step {self._step:,}/{self._total:,} ({share:.1%})  loss {self._loss:.4f}"
        if self._steps_per_s:
            left = timedelta(seconds=round((self._total - self._step) / self._steps_per_s))
            line += f"  {self._steps_per_s:.3g} steps/s  ETA {left}"
        write_line(self._stream, line)


class BarProgress(TimedProgress):
    """A tqdm bar."""

    def __init__(
        self,
        first_step: int,
        total_steps: int,
        stream: TextIO,
        interval_s: float = _BAR_INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
        make_bar: Any = tqdm,
    ) -> None:
        """`make_bar`: the class of the bar; there are others than tqdm's own, for notebooks."""
        super().__init__(first_step, stream, interval_s, clock)
        self._make_bar = make_bar
        self._bar: Any = make_bar(
            total=total_steps,
            initial=first_step,
            file=stream,
            unit="step",
            mininterval=0,
            miniters=1,
            dynamic_ncols=True,
        )

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            tqdm.write(text, file=self._stream)

    @contextlib.contextmanager
    def show_work(self, text: str, total: int) -> Iterator[Advance]:
        """Shows a second bar below that of the steps, which goes at the end."""
        bar = self._make_bar(
            total=total,
            desc=text,
            file=self._stream,
            leave=False,
            delay=_WORK_DELAY_S,
            mininterval=_WORK_INTERVAL_S,
            unit_scale=True,
        )
        ended = threading.Event()

        def keep_current() -> None:
            """Counts the time also while nothing is reported; what was shown is cleared away at the end."""
            wait_s = _WORK_DELAY_S
            with contextlib.suppress(OSError, ValueError):
                while not ended.wait(wait_s):
                    bar.delay, wait_s = 0, _WORK_INTERVAL_S
                    bar.refresh()

        thread = threading.Thread(target=keep_current, daemon=True)
        thread.start()
        try:
            yield bar.update
        finally:
            ended.set()
            thread.join()
            with contextlib.suppress(OSError):
                bar.close()

    def close(self) -> None:
        if self._bar.n != self._step:
            self._show()
        with contextlib.suppress(OSError):
            self._bar.close()

    def _begin_timing(self) -> None:
        with contextlib.suppress(OSError):
            self._bar.unpause()
            self._bar.n = self._bar.initial = self._step
            self._bar.refresh()

    def _show(self) -> None:
        self._shown_s = self._clock()
        with contextlib.suppress(OSError):
            self._bar.set_postfix_str(f"loss {self._loss:.4f}", refresh=False)
            self._bar.update(self._step - self._bar.n)


def open_progress(first_step: int, total_steps: int, stream: TextIO, interval_s: float = 10.0) -> Progress:
    """Opens a bar if `stream` is a terminal, else lines at most every `interval_s`; `first_step` steps are done."""
    if stream.isatty():
        return BarProgress(first_step, total_steps, stream)
    return LineProgress(first_step, total_steps, stream, interval_s)


def write_line(stream: TextIO, text: str) -> None:
    """Writes a line, if the stream takes it."""
    # A full disk or a reader that went away must not end days of training.
    with contextlib.suppress(OSError):
        stream.write(text + "\n")
        stream.flush()
