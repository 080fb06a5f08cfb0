"""What a profile's trace is made of: when each thread of a rank did what."""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

_TASKS = Path("/proc/self/task")
_LEAST_BUSY = 0.005  # of a turn; a thread that wakes now and then to look around is idle


class Event(NamedTuple):
    """A span of a thread, in nanoseconds of the monotonic clock."""

    label: str
    thread: int
    start_ns: int
    end_ns: int

    def earlier(self, offset_ns: int) -> "Event":
        """Returns the same on a clock that is behind."""
        return self._replace(start_ns=self.start_ns - offset_ns, end_ns=self.end_ns - offset_ns)


@dataclass(frozen=True)
class Timeline:
    """The events of one rank's threads, and their names."""

    events: tuple[Event, ...]
    thread_names: Mapping[int, str]


class Recorder:
    """An observer that keeps every span, whichever thread it is of.

    Of threads without any, such as those of OpenMP, it tells how busy they were at each turn.
    """

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._turns: list[Event] = []
        self._names: dict[int, str] = {}
        self._before: dict[int, int] = {}

    def begin(self, label: str) -> None:
        pass

    def end(self, label: str, start_ns: int, end_ns: int) -> None:
        self._events.append(Event(label, threading.get_native_id(), start_ns, end_ns))

    def forget(self) -> None:
        """Forgets the spans so far: they warmed up."""
        self._events.clear()

    def turn_begins(self) -> int:
        """Returns the time, once it is known how long each thread has computed until now."""
        self._before = _cpu_times_ns()
        return time.perf_counter_ns()

    def turn_ended(self, name: str, start_ns: int) -> None:
        """Notes of each thread how much of the turn it computed."""
        end_ns = time.perf_counter_ns()
        for thread, cpu_ns in _cpu_times_ns().items():
            busy = (cpu_ns - self._before.get(thread, 0)) / (end_ns - start_ns)
            if busy >= _LEAST_BUSY:
                self._turns.append(Event(f"{min(busy, 1):.0%} busy: {name}", thread, start_ns, end_ns))
        self._names.update(_thread_names())

    def timeline(self, offset_ns: int) -> Timeline:
        """Returns what was kept, on a clock that is `offset_ns` behind, with the names of the threads that worked."""
        with_spans = {event.thread for event in self._events}
        busy = [event for event in self._turns if event.thread not in with_spans]
        events = tuple(event.earlier(offset_ns) for event in (*self._events, *busy))
        threads = sorted({event.thread for event in events})
        return Timeline(events, {thread: self._names.get(thread, "ended thread") for thread in threads})


def _cpu_times_ns() -> dict[int, int]:
    """Nanoseconds that each thread, by its number, has computed; Linux counts them, also of OpenMP's threads."""
    times_ns = {}
    for task in _TASKS.iterdir():
        try:
            on_core, *_ = (task / "schedstat").read_text().split()
        except OSError:  # it has ended meanwhile
            continue
        times_ns[int(task.name)] = int(on_core)
    return times_ns


def _thread_names() -> dict[int, str]:
    """Names of threads as Python calls them; the main thread and those of libraries by what they are."""
    names = {int(task.name): "library thread" for task in _TASKS.iterdir()}
    for thread in threading.enumerate():
        if thread.native_id is not None:
            names[thread.native_id] = "main" if thread is threading.main_thread() else thread.name
    return names
