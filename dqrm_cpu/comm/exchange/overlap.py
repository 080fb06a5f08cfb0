"""Lets the message of the tables travel while the step computes what is left of its backward.

The message takes a second channel between the ranks, in a thread of its own, so that it never waits behind the
gradients of the MLPs nor they behind it. What travels and how it is summed stays the same, to the bit.
"""

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Generic, TypeVar

import numpy as np

from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.comm.transports.process_transport import ProcessTransport
from dqrm_cpu.errors import ConfigError
from dqrm_cpu.profile.spans import Spans

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class _Done(Generic[T]):
    """What an operation returned, what it sent for other ranks, and when it ended, on the clock of spans."""

    value: T
    bytes_sent: int
    start_ns: int
    end_ns: int


class Channel:
    """Carries out operations between the ranks: at once, or in a thread beside what the caller does next."""

    def __init__(self, transport: Transport, spans: Spans, executor: Executor | None = None) -> None:
        self._transport = transport  # only this channel uses it while an operation is under way
        self._spans = spans
        self._executor = executor  # of one thread

    def start(self, operation: Callable[[Transport], T], then: Callable[[T, int], R]) -> Callable[[], R]:
        """Starts an operation; the function that it returns waits for the end, and returns what `then` makes of it.

        `then` gets what the operation returned and how many bytes it sent. Without a thread it is called at once:
        before anything else may use the memory that the message came to.
        """
        if self._executor is None:
            with self._spans.wire:
                done = self._run(operation)
            made = then(done.value, done.bytes_sent)
            return lambda: made
        future = self._executor.submit(self._run_beside, operation)

        def finish() -> R:
            since = perf_counter_ns()
            with self._spans.wire:
                done = future.result()
            self._spans.wire_hidden(min(since, done.end_ns) - done.start_ns)
            return then(done.value, done.bytes_sent)

        return finish

    def _run_beside(self, operation: Callable[[Transport], T]) -> _Done[T]:
        """Runs an operation in the other thread, where a failure ends the job: nobody may be waiting for it yet."""
        try:
            with self._spans.wire_beside:
                return self._run(operation)
        except BaseException as error:
            self._transport.abort_on(error)

    def _run(self, operation: Callable[[Transport], T]) -> _Done[T]:
        start_ns, before = perf_counter_ns(), self._transport.bytes_sent
        value = operation(self._transport)
        return _Done(value, self._transport.bytes_sent - before, start_ns, perf_counter_ns())


def open_channel(transport: Transport, overlap: str, spans: Spans) -> Channel:
    """Opens the channel that `overlap`, a choice of the comm settings, asks for; every rank calls it.

    All ranks come to the same kind of channel.
    """
    if overlap == "off" or not isinstance(transport, ProcessTransport) or transport.size == 1:
        return Channel(transport, spans)
    obstacle = transport.overlap_obstacle()
    if overlap == "on" and obstacle:
        raise ConfigError(f"comm.overlap on is not possible over {transport.name}, {obstacle}: set it to auto or off")
    if not bool(transport.allgather_small(np.array([not obstacle])).all()):
        return Channel(transport, spans)
    twin, executor = transport.second_channel()
    return Channel(twin, spans, executor)
