"""The watchdog, the buffers and the end of a transport's block, without other processes."""

import threading
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dqrm_cpu.comm.heartbeat.watchdog import Watchdog
from dqrm_cpu.comm.transport import ALIGNMENT_BYTES, Buffers, SingleTransport
from dqrm_cpu.errors import CommError, DataError


def test_the_watchdog_says_what_was_waited_for() -> None:
    reasons: list[str] = []
    barked = threading.Event()

    def bark(what: str) -> None:
        reasons.append(what)
        barked.set()

    watchdog = Watchdog(0.05, bark)
    with watchdog.waiting_for("a barrier"):
        assert barked.wait(30)
    watchdog.stop()
    assert reasons == ["a barrier"]


def test_the_watchdog_is_silent_while_nobody_waits() -> None:
    reasons: list[str] = []
    watchdog = Watchdog(0.02, reasons.append)
    with watchdog.waiting_for("nothing"):
        pass
    # Longer than the timeout, outside of any wait.
    threading.Event().wait(0.1)
    watchdog.stop()
    assert reasons == []


def test_no_time_passes_while_the_watchdog_is_paused() -> None:
    reasons: list[str] = []
    barked, compiling = threading.Event(), threading.Event()
    compiling.set()

    def bark(what: str) -> None:
        reasons.append(what)
        barked.set()

    watchdog = Watchdog(0.05, bark, compiling.is_set)
    with watchdog.waiting_for("a barrier"):
        assert not barked.wait(0.3)
        compiling.clear()
        assert barked.wait(30)
    watchdog.stop()
    assert reasons == ["a barrier"]


@given(sizes=st.lists(st.integers(0, 1000), min_size=1, max_size=10))
def test_buffers_are_aligned_and_as_long_as_asked(sizes: list[int]) -> None:
    buffers = Buffers()
    for size in sizes:
        view = buffers.take("a", size)
        assert view.size == size
        assert view.ctypes.data % ALIGNMENT_BYTES == 0


def test_a_buffer_that_is_large_enough_is_used_again() -> None:
    buffers = Buffers()
    first = buffers.take("a", 100)
    assert buffers.take("a", 50).ctypes.data == first.ctypes.data
    assert buffers.take("b", 50).ctypes.data != first.ctypes.data


class Recording(SingleTransport):
    """A transport of two ranks, as far as the end of its block goes."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 2
        self.ends: list[str] = []

    def close(self) -> None:
        self.ends.append("close")

    def abort(self, reason: str) -> NoReturn:
        self.ends.append(reason)
        raise SystemExit(1)


def unanimous() -> CommError:
    error = CommError("all differ")
    error.unanimous = True
    return error


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (unanimous(), "close"),
        (SystemExit(0), "close"),
        (SystemExit(2), "SystemExit: 2"),
        (DataError("shard 7"), "shard 7"),
        (KeyboardInterrupt(), "interrupted"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_only_an_error_of_one_rank_takes_the_others_down(error: BaseException, ends: str) -> None:
    transport = Recording()
    with pytest.raises(BaseException), transport:  # noqa: B017
        raise error
    assert transport.ends[-1].endswith(ends)


def test_in_one_process_an_error_just_leaves() -> None:
    with pytest.raises(DataError, match="shard 7"), SingleTransport():
        raise DataError("shard 7")
