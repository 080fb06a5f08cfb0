"""Signals set a flag; a second Ctrl-C gets through."""

import os
import signal
import threading

import pytest

from dqrm_cpu.base.signals import SAME_EVENT_S, StoppedBySignal, StopRequest

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]


def _send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_each_signal_only_sets_the_flag(number: signal.Signals) -> None:
    with StopRequest() as stop:
        assert (stop.requested, stop.signal_name) == (False, None)
        _send(number)
        assert (stop.requested, stop.signal_name) == (True, number.name)


class Clock:
    """Stands still unless a test moves it."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_the_first_signal_is_the_one_named_and_an_announcement_is_no_request() -> None:
    with StopRequest(Clock()) as stop:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1):
            _send(number)
        assert stop.signal_name == "SIGUSR1"


@pytest.mark.parametrize("first", SIGNALS[:3])
@pytest.mark.parametrize("second", SIGNALS[1:3])
def test_a_second_request_ends_at_once(first: signal.Signals, second: signal.Signals) -> None:
    clock = Clock()
    with pytest.raises(StoppedBySignal) as caught, StopRequest(clock):
        _send(first)
        clock.now_s += SAME_EVENT_S
        _send(second)
    assert caught.value.status == 128 + second


@pytest.mark.parametrize("first", SIGNALS[1:3])
def test_ctrl_c_after_another_request_ends_at_once(first: signal.Signals) -> None:
    clock = Clock()
    with pytest.raises(KeyboardInterrupt), StopRequest(clock):
        _send(first)
        clock.now_s += SAME_EVENT_S
        _send(signal.SIGINT)


def test_what_shells_and_launchers_pass_on_is_the_same_request() -> None:
    clock = Clock()
    with StopRequest(clock) as stop:
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            _send(number)
            clock.now_s += SAME_EVENT_S / 10
        assert stop.signal_name == "SIGHUP"


def test_a_third_request_is_left_to_the_operating_system() -> None:
    clock = Clock()
    with pytest.raises(StoppedBySignal), StopRequest(clock):
        _send(signal.SIGTERM)
        clock.now_s += SAME_EVENT_S
        try:
            _send(signal.SIGTERM)
        finally:
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_under_nohup_a_closed_terminal_is_no_request() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            _send(signal.SIGHUP)
            assert not stop.requested
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


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
