"""Operations beside the step: their thread, what is waited for, what is hidden, and where it is refused."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NoReturn

import numpy as np
import pytest

from dqrm_cpu.comm.exchange.table_exchange import Channel, open_channel
from dqrm_cpu.comm.heartbeat.watchdog import Watchdog
from dqrm_cpu.comm.transport import SingleTransport, Transport
from dqrm_cpu.comm.transports.process_transport import ProcessTransport
from dqrm_cpu.errors import ConfigError
from dqrm_cpu.timing.phases import Phase
from dqrm_cpu.timing.spans import Spans


def one_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1)


def numbered(number: int, _: Transport) -> tuple[int, int]:
    return number, threading.get_ident()


def test_operations_run_in_their_order_in_one_other_thread() -> None:
    with one_thread() as executor:
        channel = Channel(SingleTransport(), Spans(), executor)
        started = [channel.start(partial(numbered, number), lambda value, _: value) for number in range(5)]
        numbers, threads = zip(*(finish() for finish in started), strict=True)
    assert numbers == (0, 1, 2, 3, 4)
    assert len({*threads}) == 1
    assert threads[0] != threading.get_ident()


def test_an_operation_that_fails_ends_the_job_at_once() -> None:
    class Ended(SingleTransport):
        error: BaseException | None = None

        def abort_on(self, error: BaseException) -> NoReturn:
            self.error = error
            raise SystemExit

    transport = Ended()
    with one_thread() as executor:
        Channel(transport, Spans(), executor).start(lambda _: 1 // 0, lambda value, _: value)
    assert isinstance(transport.error, ZeroDivisionError), "before anybody waits for it"


def deliver(channel: Channel, spans: Spans, meanwhile: Callable[[], object]) -> tuple[str, int]:
    """What the operation returned and sent, in the second of two steps: the first is not counted."""
    for _ in range(2):
        spans.begin_step()
        finish = channel.start(lambda transport: transport.name, lambda name, bytes_sent: (name, bytes_sent))
        meanwhile()
        received = finish()
        spans.step_done()
    return received


def test_a_message_under_way_is_hidden_while_the_step_goes_on() -> None:
    spans, done = Spans(), threading.Semaphore(0)

    class Noticed(SingleTransport):
        @property
        def bytes_sent(self) -> int:
            done.release()
            return 0

        @bytes_sent.setter
        def bytes_sent(self, value: int) -> None:
            pass

    with one_thread() as executor:
        channel = Channel(Noticed(), spans, executor)
        received = deliver(channel, spans, lambda: [done.acquire(timeout=10) for _ in range(2)])
    assert received == ("single", 0)
    assert spans.summary().phases[Phase.WIRE_HIDDEN].total_ms > 0


def test_whoever_observes_sees_the_message_in_its_own_thread() -> None:
    seen: list[tuple[str, int]] = []

    class Watching:
        def begin(self, label: str) -> None:
            pass

        def end(self, label: str, start_ns: int, end_ns: int) -> None:
            seen.append((label, threading.get_ident()))

    with one_thread() as executor:
        Channel(SingleTransport(), Spans(Watching()), executor).start(lambda _: None, lambda value, _: value)()
    assert [label for label, _ in seen] == [Phase.WIRE.label] * 2
    assert len({thread for _, thread in seen}) == 2


def test_without_a_thread_everything_happens_at_once_and_nothing_is_hidden() -> None:
    spans, made = Spans(), []
    spans.begin_step()
    finish = Channel(SingleTransport(), spans).start(lambda _: 7, lambda value, _: made.append(value))
    assert made == [7]
    finish()
    assert made == [7]
    assert Phase.WIRE_HIDDEN not in spans.summary().phases


class OneThreaded(ProcessTransport):
    """A transport of two ranks that see the same; whatever else is called is missing."""

    def __init__(self) -> None:
        super().__init__("nccl", 0, 2, "", timeout_s=60)

    def overlap_obstacle(self) -> str:
        return "it serves one thread"

    def allgather_small(self, array: np.ndarray) -> np.ndarray:
        return np.stack([array, array])

    def _missing(self, *arguments: object) -> NoReturn:
        raise AssertionError(arguments)

    missing: Any = _missing
    barrier = _broadcast = _allgather = _alltoall = _allgatherv = _alltoallv = missing
    _open_second = _close_second = _abort_all = missing

    def _disconnect(self) -> None:
        return


def test_on_is_refused_where_the_transport_cannot() -> None:
    with OneThreaded() as transport, pytest.raises(ConfigError, match="not possible over nccl, it serves one thread"):
        open_channel(transport, "on", Spans())


def test_auto_goes_without_where_the_transport_cannot() -> None:
    with OneThreaded() as transport:
        channel = open_channel(transport, "auto", Spans())
        assert channel.start(lambda used: used is transport, lambda value, _: value)()


def test_the_patience_of_one_thread_is_not_renewed_by_another() -> None:
    ended = threading.Event()
    named: list[str] = []

    def end(what: str) -> None:
        named.append(what)
        ended.set()

    watchdog = Watchdog(0.2, end)

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
