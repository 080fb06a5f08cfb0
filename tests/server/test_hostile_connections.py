"""Connections of clients who are slow, hostile or broken: closed or refused, while others are answered."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest
from serving_process import Server, serving

from dqrm_cpu.lab.bench.harness.cases import CASES, quick
from dqrm_cpu.lab.bench.serve.random_model import random_rows, write_random_model

CONFIG = quick(CASES["kaggle_128"]()).config
ROWS = json.dumps({"rows": random_rows(CONFIG, 3, seed=1)}).encode()
HEAD = b"POST /predict HTTP/1.1\r\nHost: x\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(ROWS)
MOST_CONNECTIONS = 40


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    path = tmp_path_factory.mktemp("served") / "model.safetensors"
    write_random_model(path, CONFIG)
    with serving(path, "--timeout", "1", "--max-body", "1", "--max-connections", str(MOST_CONNECTIONS)) as started:
        yield started


def is_well(server: Server) -> bool:
    """Whether somebody else is answered."""
    status, content, _ = server.ask("POST", "/predict", ROWS)
    return status == 200 and len(json.loads(content)["probabilities"]) == 3


def connected(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=60)


def until_closed(connection: socket.socket) -> bytes:
    """Everything that the server says until it closes the connection."""
    got = b""
    with suppress(ConnectionResetError):
        while piece := connection.recv(1 << 16):
            got += piece
    return got


BROKEN = {
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"400"),
    "no version": (b"GET / HTTP/x\r\n\r\n", b"400"),
    "two lengths": (HEAD + LENGTH + b"Content-Length: 3\r\n\r\n" + ROWS, b"400"),
    "length and chunks": (HEAD + LENGTH + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"400"),
    "a negative length": (HEAD + b"Content-Length: -1\r\n\r\n", b"400"),
    "a length of letters": (HEAD + b"Content-Length: many\r\n\r\n", b"400"),
    "a length beyond 64 bits": (HEAD + b"Content-Length: 99999999999999999999\r\n\r\n", b"400"),
    "a chunk of no length": (HEAD + b"Transfer-Encoding: chunked\r\n\r\nx\r\n", b"400"),
    "a space in a name": (HEAD + b"Bad Name: 1\r\n\r\n", b"400"),
    "a zero in a header": (HEAD + b"X: a\0b\r\n\r\n", b"400"),
    "a path of bytes": (b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
    "headers of megabytes": (HEAD + b"X: " + b"a" * (1 << 20), b"431"),
    "a path of megabytes": (b"GET /" + b"a" * (1 << 20), b"431"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_request_ends_its_connection_alone(server: Server, name: str) -> None:
    content, status = BROKEN[name]
    with connected(server) as connection:
        with suppress(ConnectionResetError, BrokenPipeError):  # it may be closed already
            connection.sendall(content)
        got = until_closed(connection)
    assert not got or status in got.partition(b"\r\n")[0], got
    assert is_well(server)


def test_slow_heads_are_closed_and_set_their_connections_free(server: Server) -> None:
    """They are as many as there may be connections: nobody else gets in until they are closed."""
    with ExitStack() as stack:
        slow = [stack.enter_context(connected(server)) for _ in range(MOST_CONNECTIONS)]
        for k, connection in enumerate(slow):
            connection.sendall((b"", b"\r\n", b"P", HEAD, HEAD + b"X: y")[k % 5])
        assert server.ask("GET", "/v2/health/live")[0] == 503
        for connection in slow:
            assert until_closed(connection).startswith(b"HTTP/1.1 408")
    assert is_well(server)


def test_slow_bodies_are_answered_and_closed(server: Server) -> None:
    starts = (
        LENGTH + b"\r\n" + ROWS[:10],
        b'Transfer-Encoding: chunked\r\n\r\n5\r\n{"row\r\n',
        b"Expect: 100-continue\r\n" + LENGTH + b"\r\n",
    )
    with ExitStack() as stack:
        slow = [stack.enter_context(connected(server)) for _ in range(9)]
        for k, connection in enumerate(slow):
            connection.sendall(HEAD + starts[k % 3])
        assert is_well(server)
        for connection in slow:
            assert b"HTTP/1.1 408" in until_closed(connection)


def test_a_body_that_is_refused_is_not_read_without_end(server: Server) -> None:
    with connected(server) as connection:
        connection.sendall(HEAD + b"Content-Length: 1000000000\r\n\r\n")
        assert b"413" in connection.recv(1 << 16).partition(b"\r\n")[0]
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            while True:
                connection.sendall(b"x" * 65536)
    assert is_well(server)


@pytest.mark.parametrize("encoding", [b"gzip", b"deflate", b"br", b"identity, gzip"])
def test_compressed_bodies_are_not_unpacked(server: Server, encoding: bytes) -> None:
    with connected(server) as connection:
        connection.sendall(
            HEAD + b"Content-Encoding: " + encoding + b"\r\nConnection: close\r\n" + LENGTH + b"\r\n" + ROWS
        )
        assert b"415" in until_closed(connection).partition(b"\r\n")[0]


def test_pipelined_requests_are_answered_in_their_order(server: Server) -> None:
    asks = [b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n", HEAD + LENGTH + b"\r\n" + ROWS] * 20
    with connected(server) as connection:
        connection.sendall(b"".join(asks) + b"GET /none HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answers = until_closed(connection).split(b"HTTP/1.1 ")[1:]
    assert [answer[:3] for answer in answers] == [b"200"] * 40 + [b"404"]
    assert all((b"probabilities" in answer) == bool(k % 2) for k, answer in enumerate(answers[:40]))


def test_old_clients_and_those_who_leave_are_served(server: Server) -> None:
    with connected(server) as connection:
        connection.sendall(b"POST /predict HTTP/1.0\r\n" + LENGTH + b"\r\n" + ROWS)
        assert b"200 OK" in until_closed(connection).partition(b"\r\n")[0]
    for _ in range(MOST_CONNECTIONS + 5):
        with connected(server) as connection:
            connection.sendall(HEAD + LENGTH + b"\r\n" + ROWS)  # and does not wait for the answer
    end = time.monotonic() + 60
    while not is_well(server):  # until the server has seen that they have left
        assert time.monotonic() < end
