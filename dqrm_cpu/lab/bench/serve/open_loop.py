"""A load on an HTTP server of this machine, in a process of its own: `python -m ...open_loop LOAD_JSON FIGURES_FILE`.

In an open loop requests leave at times that are fixed beforehand, and a request's latency counts from the time at
which it should have left. So a server that stops for a second is charged for all that came due in that second, and a
load that falls behind its times makes the figures worse, never better. In a closed loop as many requests as there are
connections are always under way: what the server can do at most.
"""

import json
import os
import selectors
import socket
import sys
import time
from collections import Counter, deque
from dataclasses import asdict, dataclass, field
from pathlib import Path

_MOST_CONNECTIONS = 512
_PIECE_BYTES = 1 << 16
_SPIN_S = 0.003
"""Before a request is due the load does not sleep: epoll wakes up to a millisecond late."""

_PATIENCE_S = 30.0


@dataclass(frozen=True)
class Load:
    """The requests of a load: whole ones as bytes, each in a file, sent one after another and again from the first."""

    port: int
    folder: str
    seconds: float
    per_s: float | None  # requests that leave in a second; None: a closed loop
    connections: int = 8  # of a closed loop
    core: int | None = None  # the only one that the load may use


@dataclass
class LoadFigures:
    """The latencies and failures of the requests of one load."""

    latency_s: list[float] = field(default_factory=list)  # of each request in its order, of those that failed too
    failed: dict[str, int] = field(default_factory=dict)  # how many, by status or by what broke
    seconds: float = 0.0  # from the first request to the last answer
    latest_start_s: float = 0.0  # by how much a request left later than it should have, at most
    connections: int = 0


class _Connection:
    """A connection with at most one request under way."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.number = 0
        self._unsent, self._got = memoryview(b""), bytearray()

    def begin(self, number: int, request: bytes) -> bool:
        """Sends a request, or its beginning: tells whether all of it is on its way."""
        self.number, self._unsent = number, memoryview(request)
        self._got.clear()
        return self.send()

    def send(self) -> bool:
        """Sends more; tells whether that was all."""
        try:
            self._unsent = self._unsent[self.socket.send(self._unsent) :]
        except BlockingIOError:
            return False
        return not self._unsent

    def receive(self) -> str | None:
        """Reads what is there; returns the status once the answer is complete. ConnectionError where it ends before."""
        piece = self.socket.recv(_PIECE_BYTES)
        if not piece:
            raise ConnectionResetError
        self._got += piece
        head = self._got.find(b"\r\n\r\n")
        if head < 0:
            return None
        length = next(
            int(line.split(b":")[1])
            for line in self._got[:head].split(b"\r\n")
            if line.lower().startswith(b"content-length:")
        )
        return self._got[9:12].decode() if len(self._got) == head + 4 + length else None


class _Run:
    """A load under way."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._requests = [path.read_bytes() for path in sorted(Path(load.folder).iterdir())]
        self._selector = selectors.DefaultSelector()
        self._idle: deque[_Connection] = deque()
        self._busy: set[_Connection] = set()
        self._failed: Counter[str] = Counter()
        self._due: list[float] = []
        self._done: list[float] = []
        self._opened, self._latest = 0, 0.0

    def figures(self) -> LoadFigures:
        """Sends all requests and waits for their answers."""
        load, began = self._load, time.perf_counter()
        end = began + load.seconds
        count = None if load.per_s is None else round(load.seconds * load.per_s)
        while True:
            now = time.perf_counter()
            if count is None:
                while now < end and len(self._busy) < load.connections:
                    self._begin(now)
                due = end
            else:
                due = began + len(self._due) / (load.per_s or 1)
                while len(self._due) < count and due <= now and len(self._busy) < _MOST_CONNECTIONS:
                    self._latest = max(self._latest, now - due)
                    self._begin(due)
                    due, now = began + len(self._due) / (load.per_s or 1), time.perf_counter()
            is_over = now >= end if count is None else len(self._due) == count
            if is_over and not self._busy:
                break
            if now > end + _PATIENCE_S:
                self._failed["no answer"] += len(self._busy)
                break
            self._wait(0.1 if is_over else max(0.0, due - now - _SPIN_S))
        latency = [after - before for before, after in zip(self._due, self._done, strict=True)]
        return LoadFigures(latency, dict(self._failed), time.perf_counter() - began, self._latest, self._opened)

    def _begin(self, due: float) -> None:
        number = len(self._due)
        self._due.append(due)
        self._done.append(due + _PATIENCE_S)
        if self._idle:
            connection = self._idle.popleft()
        else:
            connection = _Connection(self._load.port)
            self._selector.register(connection.socket, selectors.EVENT_READ, connection)
            self._opened += 1
        self._busy.add(connection)
        try:
            if not connection.begin(number, self._requests[number % len(self._requests)]):
                self._selector.modify(connection.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, connection)
        except ConnectionError as error:
            self._lose(connection, type(error).__name__)

    def _wait(self, timeout_s: float) -> None:
        for key, events in self._selector.select(timeout_s):
            connection: _Connection = key.data
            try:
                if events & selectors.EVENT_WRITE and connection.send():
                    self._selector.modify(connection.socket, selectors.EVENT_READ, connection)
                status = connection.receive() if events & selectors.EVENT_READ else None
            except ConnectionError as error:
                self._lose(connection, type(error).__name__)
                continue
            if status is not None:
                self._done[connection.number] = time.perf_counter()
                self._busy.discard(connection)
                self._idle.append(connection)
                if status != "200":
                    self._failed[status] += 1

    def _lose(self, connection: _Connection, why: str) -> None:
        """Forgets a connection; its request, if one was under way, has failed."""
        self._selector.unregister(connection.socket)
        connection.socket.close()
        if connection in self._busy:
            self._busy.discard(connection)
            self._failed[why] += 1
        else:
            self._idle.remove(connection)


def run_load(load: Load) -> LoadFigures:
    """Sends the requests of a load, in this process."""
    if load.core is not None:
        os.sched_setaffinity(0, {load.core})
    return _Run(load).figures()


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(asdict(run_load(Load(**json.loads(sys.argv[1]))))))
