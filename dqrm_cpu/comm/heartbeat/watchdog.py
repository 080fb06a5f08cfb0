"""Ends a process that waits longer for the other ranks than the user allowed."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LONGEST_PAUSE_S = 2.0
"""A thread that wanted to look earlier than so long ago did not run: its process was stopped."""


class Watchdog:
    """A thread that looks now and then at one deadline of each thread that waits; to set and clear it costs little.

    `on_timeout` is called in that thread with what was waited for, and must not return to a living job.
    """

    def __init__(
        self, timeout_s: float, on_timeout: Callable[[str], None], paused: Callable[[], bool] = lambda: False
    ) -> None:
        """While `paused` says so no time passes, nor does it while this process itself is stopped."""
        self._timeout_s = timeout_s
        self._on_timeout = on_timeout
        self._paused = paused
        self._waiting: dict[int, tuple[float, str]] = {}  # by thread, on the clock less `_lost_s`
        self._lost_s = 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="dqrm-comm-watchdog", daemon=True)
        self._thread.start()

    @contextmanager
    def waiting_for(self, what: str) -> Iterator[None]:
        """Everything inside the block has to end before the timeout."""
        thread = threading.get_ident()
        self._waiting[thread] = (time.monotonic() - self._lost_s + self._timeout_s, what)
        try:
            yield
        finally:
            self._waiting.pop(thread, None)

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        period_s = min(1.0, self._timeout_s / 8)
        looked_at = time.monotonic()
        while not self._stopped.wait(period_s):
            now = time.monotonic()
            since_s, looked_at = now - looked_at, now
            # The whole job may have been stopped, as by a batch system that lets another one go first: whoever looks
            # first when it goes on must give the others time to be heard.
            if self._paused() or since_s > period_s + _LONGEST_PAUSE_S:
                self._lost_s += since_s
            # A copy: the threads may clear or replace theirs at any time.
            for until, what in self._waiting.copy().values():
                if now - self._lost_s > until:
                    self._on_timeout(what)
                    return
