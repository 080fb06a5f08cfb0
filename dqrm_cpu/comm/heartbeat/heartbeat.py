"""Who is still there: a quiet connection of every rank to rank 0, beside the transport.

A collective that does not end cannot tell whom it waits for, and over some transports it does not even end when a rank
dies. Here a rank that dies is noticed by its closed connection, and one that hangs is known by its silence.
"""

import contextlib
import secrets
import selectors
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable

from dqrm_cpu.comm.heartbeat.last_seen import Attendance, Place
from dqrm_cpu.comm.heartbeat.lines import Line, LineSocket
from dqrm_cpu.comm.heartbeat.local_ranks import Peers, compiles_now, find_peers
from dqrm_cpu.comm.transport import Transport

OnLost = Callable[[int, str], None]
"""Called in the thread of the roll call with a rank that is gone and what it did, if it told; must not return."""

_CONNECT_LIMIT_S = 5.0
_LONGEST_PERIOD_S, _PERIODS_PER_TIMEOUT = 0.25, 16
_PERIODS_OF_SILENCE = 8
_START: Place = (0, 0)


class RollCall(ABC):
    """One rank's part. A thread tells its place every period and listens for who is gone."""

    def __init__(self, rank: int, peers: Peers, period_s: float, place: Callable[[], Place], on_lost: OnLost) -> None:
        self._peers = peers
        self._period_s = period_s
        self._place = place
        self._on_lost = on_lost
        self._attendance = Attendance(rank, silent_after_s=_PERIODS_OF_SILENCE * period_s)
        self._selector = selectors.DefaultSelector()
        self._waker, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ, self._wake)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="dqrm-comm-roll-call", daemon=True)
        self._lost = threading.Event()

    def absent(self) -> str:
        """Those that are not where this rank is, in words; empty where nothing is known."""
        return self._attendance.absent(self._place(), time.monotonic())

    def others_compile(self) -> bool:
        """Whether another rank, one that is heard of, is compiling kernels: nobody hangs who waits for it."""
        return self._attendance.compiling(time.monotonic())

    def end_helpless(self) -> list[int]:
        """Ends the ranks of this host that are stopped or silent, which no message ends; returns them."""
        return self._peers.kill(self._attendance.silent(self._place(), time.monotonic()))

    def wait_for_loss(self, seconds: float) -> None:
        """Gives the thread time to find out who is gone, which then ends this process."""
        self._lost.wait(seconds)
        if self._lost.is_set():
            time.sleep(seconds)

    def leave(self) -> None:
        """The others are told that this is no loss."""
        self._stopped.set()
        self._waker.send(b"x")
        self._thread.join()
        self._send({"bye": True})
        self._close()

    def tell_end(self, reason: str) -> None:
        """The others learn why this rank takes the job down."""
        self._send({"end": reason})

    @abstractmethod
    def _send(self, line: Line) -> None:
        """To whom this rank is connected; what cannot be sent now is dropped."""

    @abstractmethod
    def _tell_place(self) -> None: ...

    @abstractmethod
    def _close(self) -> None: ...

    def _gone(self, rank: int, reason: str) -> None:
        self._lost.set()
        self._on_lost(rank, reason)

    def _wake(self) -> None:
        self._woken.recv(1)

    def _listen(self) -> None:
        due = time.monotonic()
        while not self._stopped.is_set():
            for key, _ in self._selector.select(max(0.0, due - time.monotonic())):
                key.data()
            if time.monotonic() >= due:
                due = time.monotonic() + self._period_s
                self._tell_place()


class _Host(RollCall):
    """Rank 0: knows everyone, and tells the others."""

    def __init__(
        self,
        listener: socket.socket,
        token: str,
        peers: Peers,
        period_s: float,
        place: Callable[[], Place],
        on_lost: OnLost,
    ) -> None:
        super().__init__(0, peers, period_s, place, on_lost)
        self._listener, self._token = listener, token
        self._guests: dict[int, LineSocket] = {}
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        self._thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            guest = LineSocket(self._listener.accept()[0])
            self._selector.register(guest.socket, selectors.EVENT_READ, lambda: self._read(guest))

    def _read(self, guest: LineSocket) -> None:
        lines = guest.read()
        for line in lines or []:
            if guest.rank is None:
                self._greet(guest, line)
            elif "at" in line:
                self._attendance.note(guest.rank, line["at"], time.monotonic(), bool(line.get("compiling")))
            elif "bye" in line:
                self._forget(guest)
                return
            elif "end" in line:
                self._lose(guest, f"ended the job: {line['end']}")
        if lines is None:
            self._lose(guest, "")

    def _greet(self, guest: LineSocket, line: Line) -> None:
        if line.get("token") != self._token:
            self._forget(guest)
            return
        guest.rank = int(line["rank"])
        self._guests[guest.rank] = guest
        # One that is stopped before it tells its place is to be missed too.
        self._attendance.note(guest.rank, _START, time.monotonic())

    def _lose(self, guest: LineSocket, reason: str) -> None:
        rank = guest.rank
        self._forget(guest)
        if rank is not None:
            self._send({"lost": rank, "reason": reason})
            self._gone(rank, reason)

    def _forget(self, guest: LineSocket) -> None:
        self._selector.unregister(guest.socket)
        guest.socket.close()
        if guest.rank is not None:
            self._guests.pop(guest.rank, None)
            self._attendance.forget(guest.rank)

    def _tell_place(self) -> None:
        step, operations = self._place()
        now = time.monotonic()
        behind = self._attendance.behind((step, operations), now)
        compiling = compiles_now() or self._attendance.compiling(now)
        self._send({"at": [step, operations], "others": behind, "compiling": compiling})

    def _send(self, line: Line) -> None:
        for guest in list(self._guests.values()):
            guest.send(line)

    def _close(self) -> None:
        for open_socket in (self._listener, *(guest.socket for guest in self._guests.values())):
            open_socket.close()


class _Guest(RollCall):
    """Any other rank: knows what rank 0 says, and whether rank 0 still says anything."""

    def __init__(
        self,
        rank: int,
        host: LineSocket,
        peers: Peers,
        period_s: float,
        place: Callable[[], Place],
        on_lost: OnLost,
    ) -> None:
        super().__init__(rank, peers, period_s, place, on_lost)
        self._host = host
        self._attendance.note(0, _START, time.monotonic())
        self._selector.register(host.socket, selectors.EVENT_READ, self._read)
        self._thread.start()

    def _read(self) -> None:
        lines = self._host.read()
        for line in lines or []:
            if "at" in line:
                self._attendance.note(0, line["at"], time.monotonic(), bool(line.get("compiling")))
                self._attendance.note_hearsay(line["others"], time.monotonic())
            elif "bye" in line:
                self._selector.unregister(self._host.socket)
                self._attendance.forget(0)
                return
            elif "lost" in line:
                self._gone(line["lost"], line["reason"])
            elif "end" in line:
                self._gone(0, f"ended the job: {line['end']}")
        if lines is None:
            self._selector.unregister(self._host.socket)
            self._gone(0, "")

    def _tell_place(self) -> None:
        self._send({"at": list(self._place()), "compiling": compiles_now()})

    def _send(self, line: Line) -> None:
        self._host.send(line)

    def _close(self) -> None:
        self._host.socket.close()


def open_roll_call(
    transport: Transport, timeout_s: float, place: Callable[[], Place], on_lost: OnLost
) -> RollCall | None:
    """Every rank calls it; None on a rank that cannot reach rank 0 beside the transport, which goes on without."""
    period_s = min(_LONGEST_PERIOD_S, timeout_s / _PERIODS_PER_TIMEOUT)
    peers = find_peers(transport)
    if transport.rank == 0:
        listener = socket.create_server(("127.0.0.1" if peers.on_one_host else "", 0), backlog=transport.size)
        token = secrets.token_hex(16)
        meeting = ["127.0.0.1" if peers.on_one_host else socket.gethostname(), listener.getsockname()[1], token]
        transport.broadcast_json(meeting)
        return _Host(listener, token, peers, period_s, place, on_lost)
    told = transport.broadcast_json(None)
    assert isinstance(told, list)
    host, port, token = told
    try:
        connection = LineSocket(socket.create_connection((host, port), timeout=_CONNECT_LIMIT_S))
    except OSError:
        return None
    connection.send({"token": token, "rank": transport.rank})
    return _Guest(transport.rank, connection, peers, period_s, place, on_lost)
