"""How far a rank has come: what it tells the others, and what it says of itself when it fails."""

import threading


class Whereabouts:
    """Of all threads of a rank together."""

    def __init__(self) -> None:
        self.step = 0  # the one under way; 0 before the first
        self.operations = 0  # begun since the start
        self._lock = threading.Lock()

    def begin_operation(self) -> None:
        with self._lock:
            self.operations += 1
