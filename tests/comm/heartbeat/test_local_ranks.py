"""Ranks of this host that cannot end themselves."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from numba.core.compiler_lock import global_compiler_lock

from dqrm_cpu.comm.heartbeat.local_ranks import LocalProcess, LocalRanks, _status, find_local_ranks, is_compiling
from dqrm_cpu.comm.transport import SingleTransport


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"]) as process:
        yield process
        process.kill()


def process_of(sleeper: "subprocess.Popen[bytes]", later_s: int = 0) -> LocalProcess:
    status = _status(sleeper.pid)
    assert status is not None
    return LocalProcess(sleeper.pid, status[1] + later_s)


def stop(sleeper: "subprocess.Popen[bytes]") -> None:
    os.kill(sleeper.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, sleeper.pid, os.WSTOPPED | os.WNOWAIT)


def test_a_stopped_process_is_ended(sleeper: "subprocess.Popen[bytes]") -> None:
    local = LocalRanks({3: process_of(sleeper)}, on_one_host=True)
    assert local.kill(silent=()) == []
    stop(sleeper)
    assert local.kill(silent=()) == [3]
    assert sleeper.wait(30) == -signal.SIGKILL


def test_a_silent_process_is_ended(sleeper: "subprocess.Popen[bytes]") -> None:
    assert LocalRanks({3: process_of(sleeper)}, on_one_host=True).kill(silent={3}) == [3]


def test_another_process_with_the_number_of_one_that_is_gone_is_left_alone(sleeper: "subprocess.Popen[bytes]") -> None:
    assert LocalRanks({3: process_of(sleeper, later_s=1)}, on_one_host=True).kill(silent={3}) == []


def test_a_rank_is_no_other_rank_of_its_host() -> None:
    local = find_local_ranks(SingleTransport())
    assert local.on_one_host
    assert local.kill(silent={0}) == []


def test_it_is_known_when_another_thread_compiles() -> None:
    assert not is_compiling()
    with global_compiler_lock:
        seen: list[bool] = []
        asking = threading.Thread(target=lambda: seen.append(is_compiling()))
        asking.start()
        asking.join()
    assert seen == [True]
    assert not is_compiling()
