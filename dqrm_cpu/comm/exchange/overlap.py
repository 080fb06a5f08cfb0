"""Lets the message of the tables travel while the step computes what is left of its backward.

The message takes a second way between the ranks, in a thread of its own, so that it never waits behind the gradients of
the MLPs nor they behind it. What travels and how it is summed stays the same, to the bit.
"""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Generic, TypeVar

import numpy as np

from dqrm_cpu.comm.exchange.courier import Courier
from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.comm.transports.process_transport import WorldTransport
from dqrm_cpu.errors import ConfigError
from dqrm_cpu.profile.spans import Spans

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Delivery(Generic[T]):
    """What an operation brought, and what it sent for the others."""

    value: T
    bytes_sent: int


class Carrier:
    """Carries out one operation between the ranks: at once, or beside what the caller does next."""

    def __init__(self, transport: Transport, spans: Spans, courier: Courier | None = None) -> None:
        self._transport = transport  # only this carrier uses it while an operation is under way
        self._spans = spans
        self._courier = courier

    def start(self, operation: Callable[[Transport], T], then: Callable[[Delivery[T]], R]) -> Callable[[], R]:
        """The result waits for what was delivered, if need be, and gives what `then` makes of it.

        At once, that is done before anything else may use the memory that the message came to.
        """
        if self._courier is None:
            with self._spans.wire:
                delivery = self._carry_out(operation)
            made = then(delivery)
            return lambda: made
        errand = self._courier.start(lambda: self._beside(operation))

        def finish() -> R:
            since = perf_counter_ns()
            with self._spans.wire:
                delivery = errand.wait()
            self._spans.wire_hidden(min(since, errand.end_ns) - errand.start_ns)
            return then(delivery)

        return finish

    def _beside(self, operation: Callable[[Transport], T]) -> Delivery[T]:
        with self._spans.wire_beside:
            return self._carry_out(operation)

    def _carry_out(self, operation: Callable[[Transport], T]) -> Delivery[T]:
        before = self._transport.bytes_sent
        value = operation(self._transport)
        return Delivery(value, self._transport.bytes_sent - before)


def open_carrier(transport: Transport, overlap: str, spans: Spans) -> Carrier:
    """`overlap` as in WireSettings; every rank calls it, and all come to the same way."""
    if overlap == "off" or not isinstance(transport, WorldTransport) or transport.size == 1:
        return Carrier(transport, spans)
    obstacle = transport.obstacle_beside()
    if overlap == "on" and obstacle:
        raise ConfigError(f"comm.overlap on is not possible over {transport.name}, {obstacle}: set it to auto or off")
    if not bool(transport.allgather_small(np.array([not obstacle])).all()):
        return Carrier(transport, spans)
    twin, courier = transport.beside()
    return Carrier(twin, spans, courier)
