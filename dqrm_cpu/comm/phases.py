"""Where the time of an exchange goes: `with span("wire"): ...` around each phase.

Anything that is called with a name and gives a context manager can take the place of `PhaseTimes`.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Span = Callable[[str], AbstractContextManager[None]]

PHASES = ("coalesce", "quantize", "wire", "merge", "mlp", "update")
"""Of table gradients: equal rows summed, codes written, messages and waiting for other ranks, messages summed. Then
everything that concerns the MLPs' gradients, and the weights' update."""


class PhaseTimes:
    """Nanoseconds by phase, since it was made or cleared."""

    def __init__(self) -> None:
        self.nanoseconds: dict[str, int] = {}
        self.clear()

    def clear(self) -> None:
        """Begins again at 0."""
        self.nanoseconds.update(dict.fromkeys(PHASES, 0))

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter_ns()
        try:
            yield
        finally:
            self.nanoseconds[name] += time.perf_counter_ns() - start
