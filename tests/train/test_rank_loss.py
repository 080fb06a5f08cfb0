"""A rank of a real run is killed or stopped at any moment of a step: the others end, say whom they miss, and leave good
checkpoints behind."""

import contextlib
import json
import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dqrm_cpu.cli.main import main
from launching import World, alive, run_gloo, run_mpi

pytestmark = [pytest.mark.mpi, pytest.mark.long]

OVERLAP = ("--comm.overlap", "on")
SHARD = ("--comm.tables", "shard")
LAUNCHERS = {
    "mpi": ("mpi", run_mpi, ()),
    "gloo": ("gloo", run_gloo, ()),
    "oneccl-mpi": ("oneccl", run_mpi, ()),
    "oneccl-ofi": ("oneccl", run_gloo, ()),
    "mpi-overlap": ("mpi", run_mpi, OVERLAP),
    "gloo-overlap": ("gloo", run_gloo, OVERLAP),
    "oneccl-overlap": ("oneccl", run_mpi, OVERLAP),
    "mpi-shard": ("mpi", run_mpi, SHARD),
    "gloo-shard": ("gloo", run_gloo, SHARD),
    "oneccl-shard": ("oneccl", run_mpi, SHARD),
}
RANKS = 2
COMM_TIMEOUT_S = 6
PATIENCE_S = 60.0
LONGEST_STEP_S = 0.05
SETTINGS = ["--model.table-rows", "40,3,500,6000,6000", "--data.train-rows", "100000", "--data.validation-rows", "200"]
SETTINGS += ["--data.test-rows", "200", "--train.batch-size", "50", "--train.epochs", "100", "--train.log-every", "5"]
SETTINGS += ["--train.checkpoint-every", "20", "--comm.wire", "int8"]
TRAIN = ["-m", "dqrm_cpu", "train", *SETTINGS]


class Assassin(threading.Thread):
    """Sends one rank a signal once training runs, and puts an end to it when the others are gone."""

    def __init__(self, run_dir: Path, victim: int, number: signal.Signals, delay_s: float) -> None:
        super().__init__(daemon=True)
        self.run_dir, self.victim, self.number, self.delay_s = run_dir, victim, number, delay_s
        self.others_ended = False

    def run(self) -> None:
        if not eventually(self.training_runs):
            return
        ranks = json.loads((self.run_dir / "environment.json").read_text())["ranks"]
        pids = [rank["pid"] for rank in ranks]
        victim = pids.pop(self.victim)
        time.sleep(self.delay_s)
        os.kill(victim, self.number)
        self.others_ended = eventually(lambda: not any(alive(pid) for pid in pids))
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)

    def training_runs(self) -> bool:
        checkpoints = [*self.run_dir.glob("checkpoints/*/")]
        rows = self.run_dir / "metrics.jsonl"
        return len(checkpoints) >= 2 and rows.exists() and len(rows.read_text().splitlines()) > 8


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.01)
    return False


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Ranks that compile first may wait for each other longer than the timeout of these tests."""
    run_dir = tmp_path_factory.mktemp("compiled") / "run"
    run_mpi([*TRAIN, "--train.max-steps", "2", "--run-dir", run_dir], RANKS, timeout_s=280).check()


def lose(world: str, number: signal.Signals, run_dir: Path) -> tuple[int, World]:
    """The rank that was lost, and what the world left behind."""
    moment = random.Random(f"{world} {number.name}")
    victim = moment.randrange(RANKS)
    assassin = Assassin(run_dir, victim, number, moment.uniform(0, LONGEST_STEP_S))
    transport, run, options = LAUNCHERS[world]
    assassin.start()
    arguments = ["--run-dir", run_dir, "--comm.transport", transport, "--comm.timeout", str(COMM_TIMEOUT_S), *options]
    ended = run([*TRAIN, *arguments], RANKS, timeout_s=2 * PATIENCE_S, forked=False)
    assassin.join()
    assert assassin.others_ended, ended
    return victim, ended


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda number: number.name)
@pytest.mark.parametrize("world", LAUNCHERS)
def test_a_lost_rank_ends_the_run_and_is_named(world: str, number: signal.Signals, tmp_path: Path) -> None:
    victim, ended = lose(world, number, tmp_path / "run")
    assert ended.returncode != 0
    assert not ended.timed_out
    assert re.search(rf"[Rr]ank {victim} (is gone|was last heard of).* step \d+", ended.stderr), ended
    assert main(["evaluate", "--run-dir", str(tmp_path / "run"), "--checkpoint", "last"]) == 0
