"""Signals that end a command between two of its steps rather than in the middle of nowhere."""

import contextlib
import os
import threading
from collections.abc import Iterator
from types import FrameType

from dqrm_cpu.base.signals import STOP_SIGNALS, Patience, SignalHandlers, StoppedBySignal

__all__ = ["StoppedBySignal", "stopped_by_signals"]


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """While entered, the first SIGINT, SIGTERM or SIGHUP raises, and what is under way is put away.

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
