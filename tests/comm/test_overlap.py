"""Operations beside the step: their thread, what is waited for, what is hidden, and where it is refused."""

import threading
from typing import NoReturn

import numpy as np
import pytest

from dqrm_cpu.comm.exchange.courier import Courier
from dqrm_cpu.comm.exchange.overlap import Carrier, Delivery, open_carrier
from dqrm_cpu.comm.heartbeat.watchdog import Watchdog
from dqrm_cpu.comm.transports.process_transport import WorldTransport
from dqrm_cpu.comm.transports.single import SingleTransport
from dqrm_cpu.errors import ConfigError
from dqrm_cpu.profile.phases import Phase
from dqrm_cpu.profile.spans import Spans


def unexpected(error: BaseException) -> NoReturn:
    raise AssertionError from error


def test_errands_are_run_in_their_order_in_one_other_thread() -> None:
    courier = Courier(unexpected)
    errands = [courier.start(lambda number=number: (number, threading.get_ident())) for number in range(5)]
    courier.stop()
    numbers, threads = zip(*(errand.wait() for errand in errands), strict=True)
    assert numbers == (0, 1, 2, 3, 4)
    assert len({*threads}) == 1
    assert threads[0] != threading.get_ident()


def test_what_an_errand_raises_is_told_at_once() -> None:
    told: list[BaseException] = []
    courier = Courier(told.append)  # type: ignore[arg-type]
    courier.start(lambda: 1 // 0)
    courier.stop()
    assert [type(error) for error in told] == [ZeroDivisionError]


def deliver(carrier: Carrier, spans: Spans, meanwhile: object) -> Delivery[str]:
    """Of the second of two steps: the first is not counted."""
    for _ in range(2):
        spans.begin_step()
        finish = carrier.start(lambda transport: transport.name, lambda delivery: delivery)
        meanwhile()  # type: ignore[operator]
        delivery = finish()
        spans.step_done()
    return delivery


def test_a_message_under_way_is_hidden_while_the_step_goes_on() -> None:
    spans, done, courier = Spans(), threading.Semaphore(0), Courier(unexpected)

    class Noticed(SingleTransport):
        bytes_sent = property(lambda self: done.release() or 0, lambda self, value: None)  # type: ignore[assignment]

    carrier = Carrier(Noticed(), spans, courier)
    delivery = deliver(carrier, spans, lambda: [done.acquire(timeout=10) for _ in range(2)])
    courier.stop()
    assert delivery == Delivery("single", 0)
    assert spans.summary().phases[Phase.WIRE_HIDDEN].total_ms > 0


def test_whoever_observes_sees_the_message_in_its_own_thread() -> None:
    seen: list[tuple[str, int]] = []

    class Watching:
        def begin(self, label: str) -> None:
            pass

        def end(self, label: str, start_ns: int, end_ns: int) -> None:
            seen.append((label, threading.get_ident()))

    spans, courier = Spans(Watching()), Courier(unexpected)
    Carrier(SingleTransport(), spans, courier).start(lambda transport: None, lambda delivery: None)()
    courier.stop()
    assert [label for label, _ in seen] == [Phase.WIRE.label] * 2
    assert len({thread for _, thread in seen}) == 2


def test_without_a_courier_everything_happens_at_once_and_nothing_is_hidden() -> None:
    spans, made = Spans(), []
    spans.begin_step()
    finish = Carrier(SingleTransport(), spans).start(lambda transport: 7, lambda delivery: made.append(delivery.value))
    assert made == [7]
    finish()
    assert made == [7]
    assert Phase.WIRE_HIDDEN not in spans.summary().phases


class OneThreaded(WorldTransport):
    """Of two ranks that see the same; whatever else is called is missing."""

    def __init__(self) -> None:
        super().__init__("nccl", 0, 2, "", timeout_s=60)

    def obstacle_beside(self) -> str:
        return "it serves one thread"

    def allgather_small(self, array: np.ndarray) -> np.ndarray:
        return np.stack([array, array])

    def missing(self, *arguments: object) -> NoReturn:
        raise AssertionError(arguments)

    barrier = _broadcast = _allgather = _alltoall = _allgatherv = missing
    _meet_again = _leave_again = _end_all = missing

    def _leave(self) -> None:
        return


def test_on_is_refused_where_the_transport_cannot() -> None:
    with OneThreaded() as transport, pytest.raises(ConfigError, match="not possible over nccl, it serves one thread"):
        open_carrier(transport, "on", Spans())


def test_auto_goes_without_where_the_transport_cannot() -> None:
    with OneThreaded() as transport:
        carrier = open_carrier(transport, "auto", Spans())
        assert carrier.start(lambda way: way is transport, lambda delivery: delivery.value)()


def test_the_patience_of_one_thread_is_not_renewed_by_another() -> None:
    ended, named = threading.Event(), []
    watchdog = Watchdog(0.2, lambda what: (named.append(what), ended.set()))

    def hang() -> None:
        with watchdog.waiting_for("a rank that hangs"):
            ended.wait(10)

    thread = threading.Thread(target=hang)
    thread.start()
    while not ended.is_set() and thread.is_alive():
        with watchdog.waiting_for("a rank that answers"):
            ended.wait(0.01)
    thread.join()
    watchdog.stop()
    assert named == ["a rank that hangs"]
