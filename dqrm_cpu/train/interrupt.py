"""Signals ask for a clean stop: the loop finishes its step, saves, and says how to go on."""

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

from dqrm_cpu.base.signals import STOP_SIGNALS, Patience, SignalHandlers, StoppedBySignal


class StopRequest:
    """While entered, SIGINT, SIGTERM, SIGHUP and SIGUSR1 (what Slurm can send before the time limit) only set a flag.

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
        """Of the first signal that came, such as SIGTERM."""
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
