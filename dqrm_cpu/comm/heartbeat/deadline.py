"""Ends this process from outside: for waits during which no thread of it can run, such as that of MPI's start."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Its standard input closes when the wait is over, or when the process that waits is gone. Hydra would wait without end
# for a rank that is stopped: what its proxy started are the ranks of this job on this host.
_OBSERVER = """
import os, select, signal, sys
timeout_s, waiting, last_words = float(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
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
    os.write(2, last_words.encode())
    try:
        end_stopped_siblings()
    finally:
        os.kill(waiting, signal.SIGKILL)
"""


@contextmanager
def deadline(timeout_s: float, last_words: str) -> Iterator[None]:
    """What is inside the block ends before the timeout, or the process does, after these words on stderr."""
    command = [sys.executable, "-I", "-S", "-c", _OBSERVER, str(timeout_s), str(os.getpid()), f"{last_words}\n"]
    # A session of its own: Ctrl-C and a launcher's signals are for the ranks.
    observer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        yield
    finally:
        assert observer.stdin is not None
        observer.stdin.close()
        observer.wait()
