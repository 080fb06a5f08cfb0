"""Signals that end a command between two of its steps rather than in the middle of nowhere."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StoppedBySignal(BaseException):  # like KeyboardInterrupt: no error, and nothing must swallow it
    """Raised in the main thread, wherever it is."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """While entered, the first SIGINT or SIGTERM raises; later ones are ignored until what is under way is put away."""

    def stop(number: int, frame: FrameType | None) -> None:
        for other in _SIGNALS:
            signal.signal(other, signal.SIG_IGN)
        raise StoppedBySignal(number)

    if threading.current_thread() is not threading.main_thread():  # Python delivers no signals there
        yield
        return
    before = [(number, signal.signal(number, stop)) for number in _SIGNALS]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)
