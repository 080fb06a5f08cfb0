"""Ends a process that waits longer for the other ranks than the user allowed."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Watchdog:
    """A thread that looks now and then at one deadline of each thread that waits; to set and clear it costs little.

    `on_timeout` is called in that thread with what was waited for, and must not return to a living job.
    """

    def __init__(self, timeout_s: float, on_timeout: Callable[[str], None]) -> None:
        self._timeout_s = timeout_s
        self._on_timeout = on_timeout
        self._waiting: dict[int, tuple[float, str]] = {}  # by thread
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="dqrm-comm-watchdog", daemon=True)
        self._thread.start()

    @contextmanager
    def waiting_for(self, what: str) -> Iterator[None]:
        """Everything inside the block has to end before the timeout."""
        thread = threading.get_ident()
        self._waiting[thread] = (time.monotonic() + self._timeout_s, what)
        try:
            yield
        finally:
            self._waiting.pop(thread, None)

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        period_s = min(1.0, self._timeout_s / 4)
        while not self._stopped.wait(period_s):
            now = time.monotonic()
            # A copy: the threads may clear or replace theirs at any time.
            for until, what in self._waiting.copy().values():
                if now > until:
                    self._on_timeout(what)
                    return
