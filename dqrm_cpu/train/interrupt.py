"""Signals ask for a clean stop: the loop finishes its step, saves, and says how to go on."""

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

_Handler = Callable[[int, FrameType | None], object] | int | None


class StopRequest:
    """While entered, SIGINT, SIGTERM and SIGUSR1 (what Slurm can send before the time limit) only set a flag.

    A SIGINT after a first one raises KeyboardInterrupt at once: whoever presses Ctrl-C twice does not want to wait.
    Outside the main thread Python delivers no signals, so there nothing is installed.
    """

    def __init__(self) -> None:
        self._signal_name: str | None = None
        self._interrupted = False
        self._previous: list[tuple[signal.Signals, _Handler]] = []

    @property
    def requested(self) -> bool:
        return self._signal_name is not None

    @property
    def signal_name(self) -> str | None:
        """Of the first signal that came, such as SIGTERM."""
        return self._signal_name

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._previous.append((number, signal.signal(number, self._handle)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        while self._previous:
            number, handler = self._previous.pop()
            # None stands for a handler that was not installed from Python and cannot be put back from it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True
        if self._signal_name is None:
            self._signal_name = signal.Signals(number).name
