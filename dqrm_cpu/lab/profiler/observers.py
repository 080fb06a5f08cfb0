"""What else observes spans while a profile is taken: VTune's ITT marks, torch.profiler."""

import threading
from collections.abc import Sequence
from typing import Any

import torch

from dqrm_cpu.errors import DeviceError
from dqrm_cpu.timing.spans import Observer


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
    """Ranges around the operators that torch.profiler records, on the thread that runs them."""

    def __init__(self) -> None:
        self._of_thread = threading.local()

    def begin(self, label: str) -> None:
        mark: Any = torch.profiler.record_function(label)
        mark.__enter__()
        self._open().append(mark)

    def end(self, label: str, start_ns: int, end_ns: int) -> None:
        self._open().pop().__exit__(None, None, None)

    def _open(self) -> list[Any]:
        if not hasattr(self._of_thread, "marks"):
            self._of_thread.marks = []
        marks: list[Any] = self._of_thread.marks
        return marks


class Observers:
    """Several observers as one."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers

    def begin(self, label: str) -> None:
        for observer in self._observers:
            observer.begin(label)

    def end(self, label: str, start_ns: int, end_ns: int) -> None:
        for observer in reversed(self._observers):
            observer.end(label, start_ns, end_ns)
