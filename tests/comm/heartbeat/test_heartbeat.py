"""Who is missing: the words for it, and the connections that notice it, without other processes."""

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest

from dqrm_cpu.base.decode import Json
from dqrm_cpu.comm.heartbeat.heartbeat import Heartbeat, start_heartbeat
from dqrm_cpu.comm.heartbeat.last_seen import LastSeen
from dqrm_cpu.comm.transport import SingleTransport

HERE = (7, 100)
"""Step and operations of the rank that asks."""


def last_seen(rank: int = 0) -> LastSeen:
    made = LastSeen(rank, silent_after_s=2.0)
    made.record(0 if rank else 3, HERE, now=50.0)
    return made


def test_nobody_is_missing() -> None:
    assert last_seen().describe_missing(HERE, now=51.0) == ""


def test_a_silent_rank_is_told_before_a_late_one() -> None:
    found = last_seen()
    found.record(1, (6, 90), now=50.0)
    found.record(2, (7, 99), now=54.9)
    found.record(3, HERE, now=54.9)
    assert found.describe_missing(HERE, now=55.0) == "Rank 1 was last heard of 5.0 s ago, then at step 6."


def test_a_late_rank_that_speaks_is_at_work() -> None:
    found = last_seen()
    found.record(2, (0, 99), now=50.5)
    assert found.describe_missing(HERE, now=51.0) == "Rank 2 is alive and still before step 1."


def test_a_rank_that_left_is_not_missing() -> None:
    found = last_seen()
    found.forget(3)
    assert found.describe_missing(HERE, now=90.0) == ""


def test_rank_0_tells_the_others_of_each_other() -> None:
    found = last_seen(rank=1)
    found.record_reported([(1, 7, 99, 0.1), (2, 6, 90, 4.0)], now=50.0)
    assert found.describe_missing(HERE, now=50.5) == "Rank 2 was last heard of 4.5 s ago, then at step 6."


def test_what_a_silent_rank_0_said_is_out_of_date() -> None:
    found = last_seen(rank=1)
    found.record_reported([(2, 7, 99, 0.1)], now=50.0)
    assert found.describe_missing(HERE, now=55.0) == "Rank 0 was last heard of 5.0 s ago, then at step 7."


def test_a_rank_that_is_heard_of_and_compiles_is_waited_for() -> None:
    found = last_seen()
    found.record(1, (6, 90), now=50.0, compiling=True)
    assert found.any_compiling(now=51.0)
    assert not found.any_compiling(now=55.0)
    found.record(1, (6, 90), now=55.0)
    assert not found.any_compiling(now=55.0)


class Paired(SingleTransport):
    """Ranks that are threads of this process, as far as meeting goes."""

    def __init__(self, rank: int, sent: list[Json], ready: threading.Event) -> None:
        super().__init__()
        self.rank, self.size = rank, 3
        self._sent, self._ready = sent, ready

    def allgatherv(self, payload: np.ndarray, lengths: object = None) -> list[np.ndarray]:
        return [payload] * self.size

    def broadcast_json(self, value: Json, root: int = 0) -> Json:
        if self.rank == 0:
            self._sent.append(value)
            self._ready.set()
        assert self._ready.wait(30)
        return self._sent[0]


class World:
    """Three ranks; `lost` holds (who noticed, who is gone, reason)."""

    def __init__(self, timeout_s: float = 4.0) -> None:
        sent: list[Json] = []
        ready = threading.Event()
        self.lost: list[tuple[int, int, str]] = []
        self.noticed = threading.Event()
        self.heartbeats: list[Heartbeat] = []
        for rank in range(3):
            made = start_heartbeat(
                Paired(rank, sent, ready),
                timeout_s,
                lambda: HERE,
                partial(self.note, rank),
            )
            assert made is not None
            self.heartbeats.append(made)

    def note(self, rank: int, gone: int, reason: str) -> None:
        self.lost.append((rank, gone, reason))
        self.noticed.set()


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    time.sleep(0.3)  # rank 0 has heard of all
    yield made
    for heartbeat in made.heartbeats:
        heartbeat.close()


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.01)
    return False


def test_a_rank_that_closes_is_no_loss(world: World) -> None:
    world.heartbeats.pop(1).close()
    time.sleep(0.5)
    assert world.lost == []


def test_all_hear_of_a_rank_that_compiles(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any(heartbeat.others_compile() for heartbeat in world.heartbeats)
    monkeypatch.setattr(
        "dqrm_cpu.comm.heartbeat.heartbeat.is_compiling",
        lambda: threading.current_thread() is world.heartbeats[2]._thread,
    )
    assert eventually(lambda: world.heartbeats[0].others_compile() and world.heartbeats[1].others_compile())


@pytest.mark.parametrize(("gone", "others"), [(2, {0, 1}), (0, {1, 2})])
def test_everyone_notices_a_connection_that_breaks(world: World, gone: int, others: set[int]) -> None:
    broken = world.heartbeats.pop(gone)
    broken._stopped.set()
    broken._waker.send(b"x")
    broken._thread.join()
    broken._close_sockets()
    assert eventually(lambda: {rank for rank, _, _ in world.lost} == others)
    assert {(lost, reason) for _, lost, reason in world.lost} == {(gone, "")}


@pytest.mark.parametrize(("ending", "others"), [(1, {0, 2}), (0, {1, 2})])
def test_the_reason_of_a_rank_that_ends_the_job_reaches_all(world: World, ending: int, others: set[int]) -> None:
    world.heartbeats[ending].send_abort("shard 7 is damaged")
    assert eventually(lambda: {rank for rank, _, _ in world.lost} >= others)
    assert (min(others), ending, "ended the job: shard 7 is damaged") in world.lost
