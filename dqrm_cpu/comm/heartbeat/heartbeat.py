"""The heartbeat: a quiet connection of every rank to rank 0, beside the transport, by which lost ranks are noticed.

A collective that does not end cannot tell whom it waits for, and over some transports it does not even end when a rank
dies. Here a rank that dies is noticed by its closed connection, and one that hangs by its silence.
"""

import contextlib
import json
import secrets
import selectors
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from dqrm_cpu.comm.heartbeat.last_seen import LastSeen, Position
from dqrm_cpu.comm.heartbeat.local_ranks import LocalRanks, find_local_ranks, is_compiling
from dqrm_cpu.comm.transport import Transport

Message = dict[str, Any]

OnRankLost = Callable[[int, str], None]
"""Called in the heartbeat's thread with a rank that is gone, and the reason if it gave one; must not return."""

_CONNECT_LIMIT_S = 5.0
_LONGEST_PERIOD_S, _PERIODS_PER_TIMEOUT = 0.25, 16
_PERIODS_OF_SILENCE = 8
_START: Position = (0, 0)
_LONGEST_MESSAGE = 64 * 1024
_LONGEST_TEXT = 2000


class MessageSocket:
    """A connection that carries one JSON object a line and never makes its owner wait.

    `rank` is that of the other end, once it is known.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.socket = connection
        self.rank: int | None = None
        self._received = b""
        self._clogged = False

    def send(self, message: Message) -> None:
        """Sends the message now or not at all: an end that does not read has stopped, and must not stop this one."""
        shortened = {key: value[:_LONGEST_TEXT] if isinstance(value, str) else value for key, value in message.items()}
        line = json.dumps(shortened).encode() + b"\n"
        if self._clogged:
            return
        with contextlib.suppress(OSError):
            # After half a line nothing else may follow.
            self._clogged = self.socket.send(line) != len(line)

    def read(self) -> list[Message] | None:
        """Returns the messages that are complete by now; None once the other end is gone or sends what no rank does."""
        try:
            data = self.socket.recv(_LONGEST_MESSAGE)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not data:
            return None
        *complete, self._received = (self._received + data).split(b"\n")
        if len(self._received) > _LONGEST_MESSAGE:
            return None
        try:
            messages = [json.loads(text) for text in complete]
        except ValueError:
            return None
        return messages if all(isinstance(message, dict) for message in messages) else None


class Heartbeat(ABC):
    """One rank's end: a thread that sends the rank's position every period and listens for ranks that are gone."""

    def __init__(
        self, rank: int, local: LocalRanks, period_s: float, position: Callable[[], Position], on_lost: OnRankLost
    ) -> None:
        self._local_ranks = local
        self._period_s = period_s
        self._position = position
        self._on_lost = on_lost
        self._last_seen = LastSeen(rank, silent_after_s=_PERIODS_OF_SILENCE * period_s)
        self._selector = selectors.DefaultSelector()
        self._waker, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ, self._wake)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dqrm-comm-heartbeat", daemon=True)
        self._lost = threading.Event()

    def describe_missing(self) -> str:
        """Names the ranks that are not where this one is, in a sentence; empty where nothing is known."""
        return self._last_seen.describe_missing(self._position(), time.monotonic())

    def others_compile(self) -> bool:
        """Says whether another rank, not silent, compiles kernels: a wait for it is no hang."""
        return self._last_seen.any_compiling(time.monotonic())

    def kill_unresponsive(self) -> list[int]:
        """Kills the ranks of this host that are stopped or silent, which no message ends; returns them."""
        return self._local_ranks.kill(self._last_seen.silent(self._position(), time.monotonic()))

    def wait_for_loss(self, seconds: float) -> None:
        """Gives the thread time to find out which rank is gone; it then ends this process."""
        self._lost.wait(seconds)
        if self._lost.is_set():
            time.sleep(seconds)

    def close(self) -> None:
        """Ends the thread, and lets the others know that this rank is not lost."""
        self._stopped.set()
        self._waker.send(b"x")
        self._thread.join()
        self._send({"closing": True})
        self._close_sockets()

    def send_abort(self, reason: str) -> None:
        """Tells the others why this rank ends the job."""
        self._send({"abort": reason})

    @abstractmethod
    def _send(self, message: Message) -> None:
        """Sends to every rank that this one is connected to; what cannot be sent now is dropped."""

    @abstractmethod
    def _send_position(self) -> None: ...

    @abstractmethod
    def _close_sockets(self) -> None: ...

    def _report_lost(self, rank: int, reason: str) -> None:
        self._lost.set()
        self._on_lost(rank, reason)

    def _wake(self) -> None:
        self._woken.recv(1)

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stopped.is_set():
            for key, _ in self._selector.select(max(0.0, due - time.monotonic())):
                key.data()
            if time.monotonic() >= due:
                due = time.monotonic() + self._period_s
                self._send_position()


class _Rank0Heartbeat(Heartbeat):
    """The end of rank 0, which every other rank connects to: it knows of all, and informs them of each other."""

    def __init__(
        self,
        listener: socket.socket,
        token: str,
        local: LocalRanks,
        period_s: float,
        position: Callable[[], Position],
        on_lost: OnRankLost,
    ) -> None:
        super().__init__(0, local, period_s, position, on_lost)
        self._listener, self._token = listener, token
        self._connections: dict[int, MessageSocket] = {}
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        self._thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            connection = MessageSocket(self._listener.accept()[0])
            self._selector.register(connection.socket, selectors.EVENT_READ, lambda: self._read(connection))

    def _read(self, connection: MessageSocket) -> None:
        messages = connection.read()
        for message in messages or []:
            if connection.rank is None:
                self._admit(connection, message)
            elif "position" in message:
                compiling = bool(message.get("compiling"))
                self._last_seen.record(connection.rank, message["position"], time.monotonic(), compiling)
            elif "closing" in message:
                self._drop(connection)
                return
            elif "abort" in message:
                self._lose(connection, f"ended the job: {message['abort']}")
        if messages is None:
            self._lose(connection, "")

    def _admit(self, connection: MessageSocket, message: Message) -> None:
        if message.get("token") != self._token:
            self._drop(connection)
            return
        connection.rank = int(message["rank"])
        self._connections[connection.rank] = connection
        # One that is stopped before it sends its position is to be missed too.
        self._last_seen.record(connection.rank, _START, time.monotonic())

    def _lose(self, connection: MessageSocket, reason: str) -> None:
        rank = connection.rank
        self._drop(connection)
        if rank is not None:
            self._send({"lost": rank, "reason": reason})
            self._report_lost(rank, reason)

    def _drop(self, connection: MessageSocket) -> None:
        self._selector.unregister(connection.socket)
        connection.socket.close()
        if connection.rank is not None:
            self._connections.pop(connection.rank, None)
            self._last_seen.forget(connection.rank)

    def _send_position(self) -> None:
        step, operations = self._position()
        now = time.monotonic()
        behind = self._last_seen.behind((step, operations), now)
        compiling = is_compiling() or self._last_seen.any_compiling(now)
        self._send({"position": [step, operations], "behind": behind, "compiling": compiling})

    def _send(self, message: Message) -> None:
        for connection in list(self._connections.values()):
            connection.send(message)

    def _close_sockets(self) -> None:
        for open_socket in (self._listener, *(connection.socket for connection in self._connections.values())):
            open_socket.close()


class _OtherRankHeartbeat(Heartbeat):
    """The end of any other rank, which knows what rank 0 sends, and whether rank 0 is still alive."""

    def __init__(
        self,
        rank: int,
        connection: MessageSocket,
        local: LocalRanks,
        period_s: float,
        position: Callable[[], Position],
        on_lost: OnRankLost,
    ) -> None:
        super().__init__(rank, local, period_s, position, on_lost)
        self._connection = connection
        self._last_seen.record(0, _START, time.monotonic())
        self._selector.register(connection.socket, selectors.EVENT_READ, self._read)
        self._thread.start()

    def _read(self) -> None:
        messages = self._connection.read()
        for message in messages or []:
            if "position" in message:
                self._last_seen.record(0, message["position"], time.monotonic(), bool(message.get("compiling")))
                self._last_seen.record_reported(message["behind"], time.monotonic())
            elif "closing" in message:
                self._selector.unregister(self._connection.socket)
                self._last_seen.forget(0)
                return
            elif "lost" in message:
                self._report_lost(message["lost"], message["reason"])
            elif "abort" in message:
                self._report_lost(0, f"ended the job: {message['abort']}")
        if messages is None:
            self._selector.unregister(self._connection.socket)
            self._report_lost(0, "")

    def _send_position(self) -> None:
        self._send({"position": list(self._position()), "compiling": is_compiling()})

    def _send(self, message: Message) -> None:
        self._connection.send(message)

    def _close_sockets(self) -> None:
        self._connection.socket.close()


def start_heartbeat(
    transport: Transport, timeout_s: float, position: Callable[[], Position], on_lost: OnRankLost
) -> Heartbeat | None:
    """Connects every rank to rank 0; every rank calls it.

    Returns None on a rank that cannot reach rank 0 beside the transport, which goes on without a heartbeat.
    """
    period_s = min(_LONGEST_PERIOD_S, timeout_s / _PERIODS_PER_TIMEOUT)
    local = find_local_ranks(transport)
    if transport.rank == 0:
        listener = socket.create_server(("127.0.0.1" if local.on_one_host else "", 0), backlog=transport.size)
        token = secrets.token_hex(16)
        address = ["127.0.0.1" if local.on_one_host else socket.gethostname(), listener.getsockname()[1], token]
        transport.broadcast_json(address)
        return _Rank0Heartbeat(listener, token, local, period_s, position, on_lost)
    received = transport.broadcast_json(None)
    assert isinstance(received, list)
    host, port, token = received
    try:
        connection = MessageSocket(socket.create_connection((host, port), timeout=_CONNECT_LIMIT_S))
    except OSError:
        return None
    connection.send({"token": token, "rank": transport.rank})
    return _OtherRankHeartbeat(transport.rank, connection, local, period_s, position, on_lost)
