"""What a profile's trace is made of: when each thread of a rank did what."""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from dqrm_cpu.profiler.threads import cpu_times_ns, thread_names

_LEAST_BUSY = 0.005  # of a turn; a thread that wakes now and then to look around is idle


class Event(NamedTuple):
    """Nanoseconds of the monotonic clock."""

    label: str
    thread: int
    start_ns: int
    end_ns: int

    def earlier(self, offset_ns: int) -> "Event":
        """The same on a clock that is behind."""
        return self._replace(start_ns=self.start_ns - offset_ns, end_ns=self.end_ns - offset_ns)


@dataclass(frozen=True)
class Timeline:
    """Of one rank."""

    events: tuple[Event, ...]
    thread_names: Mapping[int, str]

    def as_list(self) -> list[Any]:
        """Plain values, to be sent."""
        return [self.events, list(self.thread_names.items())]

    @classmethod
    def from_list(cls, values: list[Any]) -> Self:
        """What `as_list` gave."""
        events, names = values
        return cls(tuple(Event(*event) for event in events), {int(thread): str(name) for thread, name in names})


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
        """Nothing so far counts: it warmed up."""
        self._events.clear()

    def turn_begins(self) -> int:
        """The time, once it is known how long each thread has computed until now."""
        self._before = cpu_times_ns()
        return time.perf_counter_ns()

    def turn_ended(self, name: str, start_ns: int) -> None:
        """Notes of each thread how much of the turn it computed."""
        end_ns = time.perf_counter_ns()
        for thread, cpu_ns in cpu_times_ns().items():
            busy = (cpu_ns - self._before.get(thread, 0)) / (end_ns - start_ns)
            if busy >= _LEAST_BUSY:
                self._turns.append(Event(f"{min(busy, 1):.0%} busy: {name}", thread, start_ns, end_ns))
        self._names.update(thread_names())

    def timeline(self, offset_ns: int) -> Timeline:
        """On a clock that is `offset_ns` behind; with the names of the threads that did anything."""
        with_spans = {event.thread for event in self._events}
        busy = [event for event in self._turns if event.thread not in with_spans]
        events = tuple(event.earlier(offset_ns) for event in (*self._events, *busy))
        return Timeline(
            events, {thread: self._names.get(thread, "ended thread") for thread in sorted({e.thread for e in events})}
        )
