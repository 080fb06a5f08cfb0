"""Signals by which somebody asks a command to stop, and asks again, and what each kind of command makes of them."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Self, TypeAlias

Handler: TypeAlias = "Callable[[int, FrameType | None], object] | int | None"

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""SIGHUP comes when the terminal is closed or the connection to it breaks."""

SAME_EVENT_S = 0.5
"""One event may bring several signals: a shell and a launcher pass on what the terminal has sent already."""


class StoppedBySignal(BaseException):  # like KeyboardInterrupt: no error, and nothing must swallow it
    """The end that a signal asks for, raised in the main thread wherever it is."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


class SignalHandlers:
    """Handlers that are installed together and put back together; only the main thread may."""

    def __init__(self) -> None:
        self._previous: list[tuple[signal.Signals, Handler]] = []

    def install(self, numbers: tuple[signal.Signals, ...], handler: Callable[[int, FrameType | None], object]) -> None:
        """Installs a handler; SIGHUP stays ignored where it is: that is what nohup is for."""
        for number in numbers:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._previous.append((number, signal.signal(number, handler)))

    def restore(self) -> None:
        """Puts back what was installed before."""
        while self._previous:
            number, handler = self._previous.pop()
            # None stands for a handler that was not installed from Python and cannot be put back from it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def end_at_once(self) -> None:
        """Lets the operating system end the process from now on, whatever it is doing."""
        for number, _ in self._previous:
            signal.signal(number, signal.SIG_DFL)


class Patience:
    """A memory of the first signal, by which a later one is another request or belongs to the same event."""

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


class StopRequest:
    """A context in which SIGINT, SIGTERM, SIGHUP and SIGUSR1 (Slurm's, before the time limit) only set a flag.

    Whoever sends a second one of the first three does not want to wait: it raises at once, and a third ends the
    process. A second Ctrl-C counts immediately, other signals once half a second has passed since the first: shells
    and launchers pass on what the terminal has sent already. SIGUSR1 is an announcement and never ends anything.
    Outside the main thread Python delivers no signals, so there nothing is installed.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._signal_name: str | None = None
        self._interrupted = False
        self._patience = Patience(clock)
        self._handlers = SignalHandlers()

    @property
    def requested(self) -> bool:
        return self._signal_name is not None

    @property
    def signal_name(self) -> str | None:
        """Returns the name of the first signal that came, such as SIGTERM."""
        return self._signal_name

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._handlers.install((*STOP_SIGNALS, signal.SIGUSR1), self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._handlers.restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._signal_name is None:
            self._signal_name = signal.Signals(number).name
        if number == signal.SIGUSR1:
            return
        pressed_again = number == signal.SIGINT and self._interrupted
        self._interrupted |= number == signal.SIGINT
        if not self._patience.is_first() and (pressed_again or self._patience.is_over()):
            self._handlers.end_at_once()
            raise KeyboardInterrupt if number == signal.SIGINT else StoppedBySignal(number)


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Raises, while entered, at the first SIGINT, SIGTERM or SIGHUP; what is under way is put away.

    One that comes half a second after it or later ends the process at once.
    """
    handlers, patience = SignalHandlers(), Patience()

    def stop(number: int, frame: FrameType | None) -> None:
        if patience.is_first():
            raise StoppedBySignal(number)
        if patience.is_over():
            handlers.end_at_once()
            os.kill(os.getpid(), number)

    if threading.current_thread() is not threading.main_thread():  # Python delivers no signals there
        yield
        return
    handlers.install(STOP_SIGNALS, stop)
    try:
        yield
    finally:
        handlers.restore()
