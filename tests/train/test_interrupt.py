"""Signals set a flag; a second Ctrl-C gets through."""

import os
import signal
import threading

import pytest

from dqrm_cpu.train.interrupt import StopRequest

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]


def _send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_each_signal_only_sets_the_flag(number: signal.Signals) -> None:
    with StopRequest() as stop:
        assert not stop.requested
        assert stop.signal_name is None
        _send(number)
        assert stop.requested
        assert stop.signal_name == number.name


def test_the_first_signal_is_the_one_named() -> None:
    with StopRequest() as stop:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            _send(number)
        assert stop.signal_name == "SIGUSR1"


def test_a_second_sigint_raises_at_once_and_handlers_are_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(KeyboardInterrupt), StopRequest():
        _send(signal.SIGINT)
        _send(signal.SIGINT)
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_handlers_are_back_after_an_error_and_after_nesting() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(RuntimeError), StopRequest() as outer, StopRequest() as inner:
        _send(signal.SIGTERM)
        assert inner.requested
        assert not outer.requested
        raise RuntimeError
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_outside_the_main_thread_nothing_is_installed() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    seen: list[bool] = []

    def work() -> None:
        with StopRequest() as stop:
            seen.append(stop.requested)
            seen.append([signal.getsignal(number) for number in SIGNALS] == before)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(timeout=10)
    assert seen == [False, True]
