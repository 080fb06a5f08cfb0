"""What all transports between real processes share: patience with the others, and the end when it is at its end."""

import contextlib
import copy
import os
import signal
import threading
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn, Self

from dqrm_cpu.comm.buffers import Buffers
from dqrm_cpu.comm.exchange.courier import Courier
from dqrm_cpu.comm.heartbeat.heartbeat import RollCall, open_roll_call
from dqrm_cpu.comm.heartbeat.watchdog import Watchdog
from dqrm_cpu.comm.transport import Transport, last_words
from dqrm_cpu.errors import CommError

_LOSS_KNOWN_AFTER_S = 1.0
"""So long an operation that failed waits for the roll call to tell who is gone."""

_END_WITHIN_S = 10
"""So long a rank that ends the job may take over its last words and over telling the others."""


class WorldTransport(Transport):
    """A rank that waits longer than `timeout_s` for the others ends the job, and says whom it waited for.

    Whoever opens one calls `start_roll_call` on every rank once the world stands.
    """

    _failures: tuple[type[BaseException], ...] = ()
    """What the library below raises when an operation fails."""

    def __init__(self, name: str, rank: int, size: int, reason: str, timeout_s: float) -> None:
        super().__init__(name, rank, size, reason)
        self._timeout_s = timeout_s
        self._ending = threading.Lock()
        self._roll_call: RollCall | None = None
        self._watchdog = Watchdog(timeout_s, self._on_timeout, self._others_compile)
        self._beside: tuple[Self, Courier] | None = None

    def start_roll_call(self) -> None:
        """From here on a rank that is gone is noticed by all, and one that hangs is known by its number."""
        if self.size > 1:
            self._roll_call = open_roll_call(self, self._timeout_s, self._position, self._on_lost)

    def beside(self) -> tuple[Self, Courier]:
        """Another transport between the same ranks, and the thread that it is for; every rank calls it.

        Both ends of a failure are shared. Raises where `obstacle_beside` has a word.
        """
        if self._beside is None:
            twin = copy.copy(self)
            twin.buffers, twin.bytes_sent = Buffers(), 0
            twin._meet_again()
            self._beside = twin, Courier(twin.end_with)
        return self._beside

    @abstractmethod
    def obstacle_beside(self) -> str:
        """Why two threads of a rank cannot use the library below at once; empty where they can."""

    def close(self) -> None:
        # oneCCL's first rank serves the others until they have left: it would wait for one that hangs without end.
        with self._waiting("the end"):
            if self._beside is not None:
                twin, courier = self._beside
                courier.stop()
                twin._leave_again()
            self._leave()
        if self._roll_call is not None:
            self._roll_call.leave()
        self._watchdog.stop()

    def abort(self, reason: str) -> NoReturn:
        # Several threads may find the end at once: the first one speaks, and no other runs on.
        self._ending.acquire()
        # The kernel's default ends the process, should a full pipe or the library below not let this thread go on.
        signal.alarm(_END_WITHIN_S)
        # Nothing may keep it from its end: a closed stderr, no memory, a library that failed already.
        with contextlib.suppress(Exception):
            last_words(self.rank, self.size, reason)
        if self._roll_call is not None:
            with contextlib.suppress(Exception):
                self._roll_call.tell_end(reason)
            with contextlib.suppress(Exception):
                self._roll_call.end_helpless()
        with contextlib.suppress(Exception):
            self._end_all()
        os._exit(1)

    @abstractmethod
    def _meet_again(self) -> None:
        """Replaces what the library below calls a world by another one of the same ranks, in a copy of a transport."""

    @abstractmethod
    def _leave_again(self) -> None:
        """Undoes `_meet_again`."""

    @abstractmethod
    def _leave(self) -> None:
        """Gives back what the library below holds."""

    @abstractmethod
    def _end_all(self) -> None:
        """Ends the other ranks as far as the library below can; this process ends after it."""

    @contextmanager
    def _waiting(self, what: str) -> Iterator[None]:
        """Around each operation that needs the other ranks."""
        self.where.begin_operation()
        try:
            with self._watchdog.waiting_for(what):
                yield
        except self._failures as error:
            if self._roll_call is not None:
                self._roll_call.wait_for_loss(_LOSS_KNOWN_AFTER_S)
            raise CommError(
                f"rank {self.rank} of {self.size}: {what} of all ranks failed{self._at_step()}. Another rank is gone, "
                f"or the network is: look at the other ranks' output. ({error}){self._absent()}"
            ) from error

    def _others_compile(self) -> bool:
        return self._roll_call is not None and self._roll_call.others_compile()

    def _position(self) -> tuple[int, int]:
        return self.where.step, self.where.operations

    def _at_step(self) -> str:
        return f" at step {self.step}" if self.step else " before step 1"

    def _absent(self) -> str:
        words = self._roll_call.absent() if self._roll_call is not None else ""
        return f" {words}" if words else ""

    def _on_timeout(self, what: str) -> None:
        self.abort(
            f"it waited more than {self._timeout_s:g} s for {what} of all ranks{self._at_step()}.{self._absent()} "
            f"Another rank hangs, is gone or is much slower: look at the other ranks' output, or allow a longer "
            f"--comm.timeout."
        )

    def _on_lost(self, rank: int, reason: str) -> None:
        self.abort(f"rank {rank} {reason or 'is gone without a word'}; this one was{self._at_step()}.")
