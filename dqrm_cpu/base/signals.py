"""Signals by which somebody asks a command to stop, and asks again."""

import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import TypeAlias

Handler: TypeAlias = "Callable[[int, FrameType | None], object] | int | None"

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""SIGHUP comes when the terminal is closed or the connection to it breaks."""

SAME_EVENT_S = 0.5
"""One event may bring several signals: a shell and a launcher pass on what the terminal has sent already."""


class StoppedBySignal(BaseException):  # like KeyboardInterrupt: no error, and nothing must swallow it
    """Raised in the main thread, wherever it is."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


class SignalHandlers:
    """Handlers that are installed together and put back together; only the main thread may."""

    def __init__(self) -> None:
        self._previous: list[tuple[signal.Signals, Handler]] = []

    def install(self, numbers: tuple[signal.Signals, ...], handler: Callable[[int, FrameType | None], object]) -> None:
        """SIGHUP stays ignored where it is: that is what nohup is for."""
        for number in numbers:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._previous.append((number, signal.signal(number, handler)))

    def restore(self) -> None:
        while self._previous:
            number, handler = self._previous.pop()
            # None stands for a handler that was not installed from Python and cannot be put back from it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def end_at_once(self) -> None:
        """From now on the operating system ends the process, whatever it is doing."""
        for number, _ in self._previous:
            signal.signal(number, signal.SIG_DFL)


class Patience:
    """Tells whether a signal is another request, or belongs to the event that brought the first one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first_s: float | None = None

    def is_first(self) -> bool:
        """Notes a signal, and says whether it is the first one."""
        if self._first_s is not None:
            return False
        self._first_s = self._clock()
        return True

    def is_over(self) -> bool:
        """Says whether a signal that comes now is a request of its own, and not the first one forwarded again."""
        return self._first_s is not None and self._clock() - self._first_s >= SAME_EVENT_S
