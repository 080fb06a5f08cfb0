"""Time limits of waits for other ranks: a thread that watches them, and a process for waits that stop every thread."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LONGEST_PAUSE_S = 2.0
"""A thread that wanted to look earlier than so long ago did not run: its process was stopped."""

# Its standard input closes when the wait is over, or when the process that waits is gone. Hydra would wait without end
# for a rank that is stopped: what its proxy started are the ranks of this job on this host.
_OBSERVER = """
import os, select, signal, sys
timeout_s, waiting, message = float(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
def status(pid):
    with open(f"/proc/{pid}/stat") as file:
        name, _, rest = file.read().partition("(")[2].rpartition(")")
    state, parent = rest.split()[:2]
    return name, state, int(parent)
def end_stopped_siblings():
    launcher = status(waiting)[2]
    if status(launcher)[0] == "hydra_pmi_proxy":
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                if status(pid)[1:] == ("T", launcher):
                    os.kill(int(pid), signal.SIGKILL)
            except OSError:
                pass
if not select.select([0], [], [], timeout_s)[0]:
    os.write(2, message.encode())
    try:
        end_stopped_siblings()
    finally:
        os.kill(waiting, signal.SIGKILL)
"""


class Watchdog:
    """A thread that ends this process when one of its threads waits longer for the other ranks than the user allowed.

    It looks now and then at one deadline of each thread that waits; to set and clear a deadline costs little.
    `on_timeout` is called in that thread with what was waited for, and must not return to a living job.
    """

    def __init__(
        self, timeout_s: float, on_timeout: Callable[[str], None], paused: Callable[[], bool] = lambda: False
    ) -> None:
        """Starts the thread. No time passes while `paused` returns true, nor while this process itself is stopped."""
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
        """Requires everything inside the block to end before the timeout."""
        thread = threading.get_ident()
        self._waiting[thread] = (time.monotonic() - self._lost_s + self._timeout_s, what)
        try:
            yield
        finally:
            self._waiting.pop(thread, None)

    def stop(self) -> None:
        """Ends the thread."""
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


@contextmanager
def process_deadline(timeout_s: float, message: str) -> Iterator[None]:
    """Kills this process, after `message` on stderr, unless the block ends before the timeout.

    Another process watches: for waits during which no thread of this one can run, such as that of MPI's start.
    """
    command = [sys.executable, "-I", "-S", "-c", _OBSERVER, str(timeout_s), str(os.getpid()), f"{message}\n"]
    # A session of its own: Ctrl-C and a launcher's signals are for the ranks.
    observer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        yield
    finally:
        assert observer.stdin is not None
        observer.stdin.close()
        observer.wait()
