"""Who else hears of spans while a profile is taken: a trace, VTune's ITT marks, torch.profiler."""

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from dqrm_cpu.errors import DeviceError
from dqrm_cpu.profile.spans import Observer


class Event(NamedTuple):
    """Nanoseconds of the monotonic clock."""

    label: str
    thread: int
    start_ns: int
    end_ns: int

    def earlier(self, offset_ns: int) -> "Event":
        """The same on a clock that is behind."""
        return self._replace(start_ns=self.start_ns - offset_ns, end_ns=self.end_ns - offset_ns)


class EventRecorder:
    """Keeps every span."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def begin(self, label: str) -> None:
        pass

    def end(self, label: str, start_ns: int, end_ns: int) -> None:
        self.events.append(Event(label, threading.get_native_id(), start_ns, end_ns))


class IttMarks:
    """Ranges that VTune shows beside what it samples."""

    def __init__(self) -> None:
        self._itt: Any = torch.profiler.itt  # untyped
        if not self._itt.is_available():
            raise DeviceError(f"torch {torch.__version__} is built without ITT marks; leave out --itt")

    def begin(self, label: str) -> None:
        self._itt.range_push(label)

    def end(self, label: str, start_ns: int, end_ns: int) -> None:
        self._itt.range_pop()


class TorchMarks:
    """Ranges around the operators that torch.profiler records."""

    def __init__(self) -> None:
        self._open: list[Any] = []

    def begin(self, label: str) -> None:
        self._open.append(torch.profiler.record_function(label))
        self._open[-1].__enter__()

    def end(self, label: str, start_ns: int, end_ns: int) -> None:
        self._open.pop().__exit__(None, None, None)


class Observers:
    """Several as one."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers

    def begin(self, label: str) -> None:
        for observer in self._observers:
            observer.begin(label)

    def end(self, label: str, start_ns: int, end_ns: int) -> None:
        for observer in reversed(self._observers):
            observer.end(label, start_ns, end_ns)
