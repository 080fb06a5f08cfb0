"""A thread that carries out operations beside the one that trains: one at a time, in the order they were given."""

import threading
from collections.abc import Callable
from queue import SimpleQueue
from time import perf_counter_ns
from typing import Any, Generic, NoReturn, TypeVar

T = TypeVar("T")

OnFailure = Callable[[BaseException], NoReturn]
"""Called in the courier's thread with what an operation raised; ends the process: nobody may be waiting for it."""


class Errand(Generic[T]):
    """One operation under way; its times are those of the operation itself, on the clock of spans."""

    def __init__(self, operation: Callable[[], T]) -> None:
        self._operation = operation
        self._over = threading.Event()
        self._result: list[T] = []
        self.start_ns = self.end_ns = 0

    def run(self) -> None:
        self.start_ns = perf_counter_ns()
        self._result.append(self._operation())
        self.end_ns = perf_counter_ns()
        self._over.set()

    def wait(self) -> T:
        """What the operation returned, once it has."""
        self._over.wait()
        return self._result[0]


class Courier:
    """Its thread starts at once and waits asleep."""

    def __init__(self, on_failure: OnFailure) -> None:
        self._on_failure = on_failure
        self._orders: SimpleQueue[Errand[Any] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="dqrm-comm-courier", daemon=True)
        self._thread.start()

    def start(self, operation: Callable[[], T]) -> Errand[T]:
        errand = Errand(operation)
        self._orders.put(errand)
        return errand

    def stop(self) -> None:
        """After what was started."""
        self._orders.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (errand := self._orders.get()) is not None:
            try:
                errand.run()
            except BaseException as error:
                self._on_failure(error)
