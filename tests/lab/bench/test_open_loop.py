"""A load charges a server for what came due while it stood still, and counts what fails."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dqrm_cpu.lab.bench.serve.open_loop import Load, run_load

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
REQUEST = b"POST / HTTP/1.1\r\nContent-Length: 300000\r\n\r\n" + b"x" * 300_000


@contextlib.contextmanager
def answering(answer: Callable[[int], bytes]) -> Iterator[int]:
    """A server that gives its n-th request the answer `answer(n)`; an empty one closes the connection."""
    lock, seen = threading.Lock(), iter(range(10**9))
    listening = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while got := connection.recv(1 << 16):
                left = len(REQUEST) - len(got)
                while left:
                    left -= len(connection.recv(left))
                with lock:
                    reply = answer(next(seen))
                connection.sendall(reply[:9])
                connection.sendall(reply[9:])
                if not reply:
                    return

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    with listening:
        yield listening.getsockname()[1]


@pytest.fixture
def requests(tmp_path: Path) -> str:
    (tmp_path / "0").write_bytes(REQUEST)
    return str(tmp_path)


def test_a_server_that_stands_still_is_charged_for_all_that_came_due(requests: str) -> None:
    """For 0.6 s at 50 a second: the 30 requests that come due meanwhile wait for half of it on average."""

    def still(number: int) -> bytes:
        if number == 10:
            time.sleep(0.6)
        return OK

    with answering(still) as port:
        found = run_load(Load(port, requests, 1.0, 50.0))
    assert (len(found.latency_s), found.failed) == (50, {})
    assert sum(latency > 0.3 for latency in found.latency_s) >= 14
    assert max(found.latency_s) > 0.55


def test_a_closed_loop_has_as_many_requests_under_way_as_connections(requests: str) -> None:
    with answering(lambda number: OK) as port:
        found = run_load(Load(port, requests, 0.3, None, connections=3))
    assert (found.connections, found.failed) == (3, {})
    assert len(found.latency_s) >= 3


def test_what_fails_is_counted_by_its_reason(requests: str) -> None:
    answers = {3: BUSY, 4: BUSY, 7: b""}
    with answering(lambda number: answers.get(number, OK)) as port:
        found = run_load(Load(port, requests, 0.5, 40.0))
    assert (len(found.latency_s), found.failed) == (20, {"503": 2, "ConnectionResetError": 1})
