"""Which threads a process has, and how long each of them computed; Linux counts it, so nobody has to be asked."""

import threading
from pathlib import Path

_TASKS = Path("/proc/self/task")


def cpu_times_ns() -> dict[int, int]:
    """By the number of each thread: nanoseconds on a core since it began, those of OpenMP and other libraries too."""
    found = {}
    for task in _TASKS.iterdir():
        try:
            on_core, *_ = (task / "schedstat").read_text().split()
        except OSError:  # it has ended meanwhile
            continue
        found[int(task.name)] = int(on_core)
    return found


def thread_names() -> dict[int, str]:
    """As Python calls them; its own main thread, and those that libraries started, by what they are."""
    found = {int(task.name): "library thread" for task in _TASKS.iterdir()}
    for thread in threading.enumerate():
        if thread.native_id is not None:
            found[thread.native_id] = "main" if thread is threading.main_thread() else thread.name
    return found
