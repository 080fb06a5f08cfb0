"""Tests of the number of threads that follows what other programs leave."""

import io
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from dqrm_cpu.comm.transport import SingleTransport
from dqrm_cpu.train import loop, thread_count
from dqrm_cpu.train.run import RunRequest, train
from dqrm_cpu.train.state import Result
from dqrm_cpu.train.thread_count import ThreadCount, is_crowded, waited_s
from tiny import tiny_config

Step = Callable[[int, float], tuple[float, float]]
"""Seconds that a step takes with so many threads at a time, and the share of them that threads wait for cores."""


class Machine:
    """A clock and a system that counts waits, driven by steps of a model of a machine."""

    def __init__(self, most: int, step: Step, counts_waits: bool = True, crowded: bool = False) -> None:
        self.now, self.waited, self.used, self.said = 0.0, 0.0, most, list[str]()
        self._step = step
        waited = (lambda: self.waited) if counts_waits else (lambda: None)
        self.threads = ThreadCount(most, self.said.append, waited, lambda: self.now, self._use, crowded)

    def run(self, seconds: float) -> list[int]:
        """The number of threads of each step."""
        end, counts = self.now + seconds, []
        while self.now < end:
            took, share = self._step(self.used, self.now)
            self.now += took
            self.waited += took * share
            counts.append(self.used)
            self.threads.step_took(took)
        return counts

    def _use(self, count: int) -> None:
        self.used = count


def alone(threads: int, now: float) -> tuple[float, float]:
    return 0.004 / threads, 0.0


def beside_another(threads: int, now: float) -> tuple[float, float]:
    return (0.004, 0.1) if threads == 1 else (0.02, 0.8)


def test_nothing_changes_on_a_machine_of_its_own() -> None:
    machine = Machine(4, alone)
    assert set(machine.run(100.0)) == {4}
    assert machine.said == []


def test_one_thread_computes_beside_others_and_all_of_them_afterwards() -> None:
    machine = Machine(2, lambda threads, now: (beside_another if now < 100 else alone)(threads, now))
    counts = machine.run(100.0)
    slow = counts.count(2) * 0.02
    assert slow < 4.0, "seconds in which both threads were tried"
    assert len(machine.said) == 1
    machine.run(30.0)
    assert set(machine.run(50.0)) == {2}


def test_half_of_the_threads_begin_where_others_take_the_cores() -> None:
    machine = Machine(2, beside_another, crowded=True)
    assert machine.used == 1
    assert set(machine.run(4.0)) == {1}
    assert len(machine.said) == 1
    assert "1 of 2 threads compute the steps for now" in machine.said[0]


def test_all_threads_are_tried_soon_where_others_took_the_cores_only_at_the_start() -> None:
    machine = Machine(4, alone, crowded=True)
    counts = machine.run(6.0)
    assert (counts[0], counts[-1]) == (2, 4)


@pytest.mark.parametrize(("most", "counts_waits"), [(1, True), (4, False)])
def test_threads_that_cannot_be_chosen_are_left_alone(most: int, counts_waits: bool) -> None:
    assert set(Machine(most, alone, counts_waits, crowded=True).run(20.0)) == {most}


def test_a_process_that_shares_its_core_is_crowded_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread_count, "waited_s", lambda: 5.0)
    monkeypatch.setattr(thread_count, "_age_s", lambda: 10.0)
    assert is_crowded()
    monkeypatch.setattr(thread_count, "waited_s", lambda: 1.0)
    assert not is_crowded()
    monkeypatch.setattr(thread_count, "waited_s", lambda: None)
    assert not is_crowded()


def test_the_age_of_a_process_grows_with_the_clock() -> None:
    before, began = thread_count._age_s(), time.monotonic()
    time.sleep(0.05)
    after, took = thread_count._age_s(), time.monotonic() - began
    assert 0 < before < time.clock_gettime(time.CLOCK_BOOTTIME)
    assert 0.04 <= after - before <= took + 0.01


def test_waits_that_fewer_threads_do_not_mend_are_looked_at_ever_more_seldom() -> None:
    machine = Machine(2, lambda threads, now: (0.004 / threads, 0.5))
    counts = machine.run(200.0)
    trials = sum(1 for a, b in itertools.pairwise(counts) if (a, b) == (2, 1))
    assert 0 < trials <= 12
    assert machine.said == []
    assert machine.used == 2


def test_of_many_threads_as_many_are_left_as_help() -> None:
    def ten_cores_of_sixteen(threads: int, now: float) -> tuple[float, float]:
        return (0.04, 2.0) if threads > 10 else (0.04 / threads, 0.0)

    counts = Machine(16, ten_cores_of_sixteen).run(60.0)
    assert counts.count(8) > 0.9 * len(counts)


def test_a_system_that_does_not_count_waits_is_left_alone() -> None:
    assert set(Machine(2, beside_another, counts_waits=False).run(20.0)) == {2}


def test_the_count_is_given_back() -> None:
    machine = Machine(2, beside_another)
    machine.run(5.0)
    assert machine.used == 1
    machine.threads.restore()
    assert machine.used == 2


def test_waits_for_a_core_are_counted() -> None:
    """Two threads on one core: each waits while the other computes."""
    before = waited_s()
    assert before is not None
    cores = os.sched_getaffinity(0)

    def burn() -> None:
        torch.set_num_threads(1)
        for _ in range(60):
            torch.ones(300, 300) @ torch.ones(300, 300)

    def on_one_core() -> None:
        os.sched_setaffinity(0, {min(cores)})
        burn()

    threads = [threading.Thread(target=on_one_core) for _ in range(2)]
    for thread in threads:
        thread.start()
    alive = waited_s()
    for thread in threads:
        thread.join()
    assert alive is not None
    assert alive > 0.0


class OtherEachStep(ThreadCount):
    """Another number of threads at every step."""

    def step_took(self, seconds: float) -> None:
        self._numbers = getattr(self, "_numbers", itertools.cycle((1, 2, 3)))
        self._use(next(self._numbers))


@pytest.fixture
def _threads_kept() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads_kept")
@pytest.mark.parametrize("quant", [{}, {"method": "none"}])
def test_the_model_does_not_depend_on_how_many_compute_it(
    quant: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(quant=quant)
    torch.set_num_threads(2)
    outcomes = []
    for name, count in (("same", ThreadCount), ("other", OtherEachStep)):
        monkeypatch.setattr(loop, "ThreadCount", count)
        outcome = train(config, RunRequest(tmp_path / name, False, {}, io.StringIO()), SingleTransport())
        assert isinstance(outcome, Result)
        assert torch.get_num_threads() == 2
        (newest,) = sorted((tmp_path / name / "checkpoints").glob("step-*"))[-1:]
        outcomes.append([path.read_bytes() for path in sorted(newest.glob("*.safetensors"))])
    assert outcomes[0]
    assert outcomes[0] == outcomes[1]


def test_two_threads_on_one_core_become_one(tmp_path: Path) -> None:
    """For real: the run finds out by itself, says so, and says it once."""
    core = str(min(os.sched_getaffinity(0)))
    sizes = "--data.train-rows 52000 --data.validation-rows 500 --data.test-rows 500 --train.batch-size 128"
    command = [sys.executable, "-m", "dqrm_cpu", "train", "--run-dir", str(tmp_path / "run"), *sizes.split()]
    world = subprocess.run(
        ["taskset", "-c", core, *command, "--train.threads", "2", "--train.max-steps", "400"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_WAIT_POLICY": "active"},
        check=False,
    )
    assert world.returncode == 0, world.stderr
    assert world.stderr.count("1 of 2 threads compute the steps for now") == 1
