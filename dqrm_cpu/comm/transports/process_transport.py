"""What all transports between real processes share: time limits, the heartbeat, and the end of the job on a failure."""

import contextlib
import copy
import logging
import os
import signal
import threading
from abc import abstractmethod
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import NoReturn, Self

from dqrm_cpu.comm.heartbeat.heartbeat import Heartbeat, start_heartbeat
from dqrm_cpu.comm.heartbeat.watchdog import Watchdog
from dqrm_cpu.comm.transport import Buffers, Transport, abort_message, write_abort_message
from dqrm_cpu.errors import CommError

_LOGGER = logging.getLogger(__name__)

_LOSS_KNOWN_AFTER_S = 1.0
"""So long an operation that failed waits for the heartbeat to tell which rank is gone."""

_END_WITHIN_S = 10
"""So long a rank that ends the job may take over its message and over telling the others."""


class ProcessTransport(Transport):
    """A transport between processes, which ends the job when this rank waits longer than `timeout_s` for the others.

    Whoever opens one calls `start_heartbeat` on every rank once all are connected.
    """

    _failures: tuple[type[BaseException], ...] = ()
    """The exceptions that the communication library raises when an operation fails."""

    def __init__(self, name: str, rank: int, size: int, reason: str, timeout_s: float) -> None:
        super().__init__(name, rank, size, reason)
        self._timeout_s = timeout_s
        self._ending = threading.Lock()
        self._heartbeat: Heartbeat | None = None
        self._watchdog = Watchdog(timeout_s, self._on_timeout, self._others_compile)
        self._second: tuple[Self, Executor] | None = None

    def start_heartbeat(self) -> None:
        """Starts the heartbeat, by which all ranks notice one that is gone and can name one that hangs."""
        if self.size > 1:
            self._heartbeat = start_heartbeat(self, self._timeout_s, self._position, self._on_lost)

    def second_channel(self) -> tuple[Self, Executor]:
        """Opens another transport between the same ranks, and the thread that uses it; every rank calls it.

        Both transports end the job together. Raises where `overlap_obstacle` gives a reason.
        """
        if self._second is None:
            twin = copy.copy(self)
            twin.buffers, twin.bytes_sent = Buffers(), 0
            twin._open_second()
            self._second = twin, ThreadPoolExecutor(max_workers=1, thread_name_prefix="dqrm-comm-overlap")
        return self._second

    @abstractmethod
    def overlap_obstacle(self) -> str:
        """Returns why two threads of a rank cannot use the library below at once; empty where they can."""

    def close(self) -> None:
        # oneCCL's first rank serves the others until they have left: it would wait for one that hangs without end.
        with self._waiting("the shutdown"):
            if self._second is not None:
                twin, executor = self._second
                executor.shutdown()
                twin._close_second()
            self._disconnect()
        if self._heartbeat is not None:
            self._heartbeat.close()
        self._watchdog.stop()

    def abort(self, reason: str) -> NoReturn:
        # Several threads may find the end at once: the first one speaks, and no other runs on.
        self._ending.acquire()
        # The kernel's default ends the process, should a full pipe or the library below not let this thread go on.
        signal.alarm(_END_WITHIN_S)
        # Nothing may keep it from its end: a closed stderr, no memory, a library that failed already.
        with contextlib.suppress(Exception):
            write_abort_message(self.rank, self.size, reason)
        if self._heartbeat is not None:
            with contextlib.suppress(Exception):
                self._heartbeat.send_abort(reason)
            with contextlib.suppress(Exception):
                self._heartbeat.kill_unresponsive()
        with contextlib.suppress(Exception):
            _LOGGER.critical(abort_message(self.rank, self.size, reason))
        with contextlib.suppress(Exception):
            self._abort_all()
        os._exit(1)

    @abstractmethod
    def _open_second(self) -> None:
        """Replaces, in a copy of a transport, the library's communicator by another one between the same ranks."""

    @abstractmethod
    def _close_second(self) -> None:
        """Frees the communicator of `_open_second`."""

    @abstractmethod
    def _disconnect(self) -> None:
        """Frees what the library below holds."""

    @abstractmethod
    def _abort_all(self) -> None:
        """Ends the other ranks as far as the library below can; this process ends after it."""

    @contextmanager
    def _waiting(self, what: str) -> Iterator[None]:
        """Surrounds each operation that needs the other ranks."""
        self.progress.begin_operation()
        try:
            with self._watchdog.waiting_for(what):
                yield
        except self._failures as error:
            if self._heartbeat is not None:
                self._heartbeat.wait_for_loss(_LOSS_KNOWN_AFTER_S)
            raise CommError(
                f"rank {self.rank} of {self.size}: {what} of all ranks failed{self._at_step()}. Another rank is gone, "
                f"or the network is: look at the other ranks' output. ({error}){self._missing_ranks()}"
            ) from error

    def _others_compile(self) -> bool:
        return self._heartbeat is not None and self._heartbeat.others_compile()

    def _position(self) -> tuple[int, int]:
        return self.progress.step, self.progress.operations

    def _at_step(self) -> str:
        return f" at step {self.progress.step}" if self.progress.step else " before step 1"

    def _missing_ranks(self) -> str:
        sentence = self._heartbeat.describe_missing() if self._heartbeat is not None else ""
        return f" {sentence}" if sentence else ""

    def _on_timeout(self, what: str) -> None:
        self.abort(
            f"it waited more than {self._timeout_s:g} s for {what} of all ranks{self._at_step()}."
            f"{self._missing_ranks()} Another rank hangs, is gone or is much slower: look at the other ranks' output, "
            f"or allow a longer --comm.timeout."
        )

    def _on_lost(self, rank: int, reason: str) -> None:
        self.abort(f"rank {rank} {reason or 'is gone and gave no reason'}; this one was{self._at_step()}.")
