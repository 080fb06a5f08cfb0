"""Small JSON messages over a socket that never makes its owner wait."""

import contextlib
import json
import socket
from typing import Any

Line = dict[str, Any]

_LONGEST_LINE = 64 * 1024
_LONGEST_TEXT = 2000


class LineSocket:
    """One line a message. `rank` is that of the other end, once it said so."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.socket = connection
        self.rank: int | None = None
        self._received = b""
        self._clogged = False

    def send(self, line: Line) -> None:
        """Now or not at all: whoever does not read has stopped, and must not stop this end too."""
        shortened = {key: value[:_LONGEST_TEXT] if isinstance(value, str) else value for key, value in line.items()}
        message = json.dumps(shortened).encode() + b"\n"
        if self._clogged:
            return
        with contextlib.suppress(OSError):
            # After half a line nothing else may follow.
            self._clogged = self.socket.send(message) != len(message)

    def read(self) -> list[Line] | None:
        """The lines that are complete by now; None once the other end is gone, or sends what no rank does."""
        try:
            data = self.socket.recv(_LONGEST_LINE)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not data:
            return None
        *complete, self._received = (self._received + data).split(b"\n")
        if len(self._received) > _LONGEST_LINE:
            return None
        try:
            lines = [json.loads(text) for text in complete]
        except ValueError:
            return None
        return lines if all(isinstance(line, dict) for line in lines) else None
