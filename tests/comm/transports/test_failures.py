"""Whatever ends one rank ends the others, with the reason, before anyone's patience does."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from launching import World, clean_environ, run_gloo, run_mpi, run_world

pytestmark = pytest.mark.mpi

WORKER = Path(__file__).parents[1] / "failing_worker.py"
TIMEOUT_S = 30.0


def fail(transport: str, mode: str, ranks: int = 2) -> World:
    """A world that the failure ends well before the transport's own timeout would (mode hang: because of it)."""
    world = run_world(transport, [WORKER, transport, mode], ranks, timeout_s=TIMEOUT_S)
    assert not world.timed_out
    assert world.returncode != 0
    assert "survived" not in "".join(rank.stdout for rank in world.ranks)
    return world


@pytest.mark.parametrize("transport", ["mpi", "gloo", "oneccl"])
@pytest.mark.parametrize(
    ("mode", "words"), [("raise", "rank 1 of 2 ends the job: shard 7 is damaged"), ("bug", "ZeroDivisionError: a bug")]
)
def test_an_exception_ends_all_ranks_with_its_words(transport: str, mode: str, words: str) -> None:
    assert words in fail(transport, mode).ranks[1].stderr


@pytest.mark.parametrize("transport", ["mpi", "oneccl"])
@pytest.mark.parametrize("mode", ["exit", "kill"])
def test_a_rank_that_is_gone_ends_the_others_under_mpirun(transport: str, mode: str) -> None:
    stderr = fail(transport, mode).stderr
    assert mode == "exit" or "rank 1 is gone and gave no reason; this one was before step 1" in stderr


def test_a_rank_that_is_gone_ends_the_others_over_gloo_with_the_reason() -> None:
    assert "rank 1 is gone and gave no reason; this one was before step 1" in fail("gloo", "kill").ranks[0].stderr


@pytest.mark.parametrize("transport", ["mpi", "gloo", "oneccl"])
def test_a_rank_that_hangs_is_given_up_after_the_timeout(transport: str) -> None:
    stderr = fail(transport, "hang").ranks[0].stderr
    assert "barrier of all ranks before step 1. Rank 1 is alive and still before step 1." in stderr
    assert "4 s" in stderr


@pytest.mark.parametrize("launcher", ["mpi", "gloo"])
def test_over_oneccl_nobody_waits_without_end_for_a_rank_that_does_not_leave(launcher: str) -> None:
    world = run_world(launcher, [WORKER, "oneccl", "stay"], 2, timeout_s=TIMEOUT_S)
    assert not world.timed_out
    assert world.returncode != 0
    assert (
        "it waited more than 4 s for the shutdown of all ranks before step 1. Rank 1 is alive" in world.ranks[0].stderr
    )


@pytest.mark.parametrize("transport", ["mpi", "gloo"])
def test_disagreement_is_told_alike_on_every_rank(transport: str) -> None:
    world = fail(transport, "disagree")
    expected = "unanimous=True the ranks were not given the same work; start all with the same:\n"
    expected += "  train.lr: 0.1 on rank 0, 0.2 on rank 1\n"
    assert [rank.stdout for rank in world.ranks] == [expected] * 2


WAITING_WORLDS = {
    "gloo under mpirun": (run_mpi, "gloo", "stop", 2),
    "gloo": (run_gloo, "gloo", "stop", 2),
    "oneccl": (run_gloo, "oneccl", "stop", 2),
    "mpi": (run_mpi, "mpi", "stop", 2),
    "compiling": (run_gloo, "gloo", "compile", 3),
}
"""Each waits for its timeout, or longer: they do so side by side."""


@pytest.fixture(scope="module")
def waiting_worlds() -> dict[str, World]:
    with ThreadPoolExecutor() as threads:
        started = {
            name: threads.submit(run, [WORKER, transport, mode], ranks, timeout_s=2 * TIMEOUT_S)
            for name, (run, transport, mode, ranks) in WAITING_WORLDS.items()
        }
        return {name: world.result() for name, world in started.items()}


@pytest.mark.parametrize("name", [name for name in WAITING_WORLDS if name != "compiling"])
def test_a_stopped_rank_is_named_and_nothing_waits_for_it(waiting_worlds: dict[str, World], name: str) -> None:
    """Neither does the launcher: somebody ends the stopped process."""
    world = waiting_worlds[name]
    assert not world.timed_out
    assert world.returncode != 0
    last = WAITING_WORLDS[name][3] - 1
    assert f"Rank {last} was last heard of" in world.stderr
    assert "survived" not in "".join(rank.stdout for rank in world.ranks)


def test_the_timeout_does_not_count_while_another_rank_compiles(waiting_worlds: dict[str, World]) -> None:
    """Rank 1 hears of the compiling rank 2 through rank 0."""
    assert [rank.stdout for rank in waiting_worlds["compiling"].check().ranks][:2] == ["waiting\nsurvived\n"] * 2


def test_a_rank_without_memory_says_so_in_one_line() -> None:
    stderr = fail("gloo", "memory").ranks[1].stderr
    assert "rank 1 of 2 ends the job: out of memory; use fewer ranks per host" in stderr
    assert "Traceback" not in stderr


LATE = """
import os, signal, sys
if os.environ.get("PMI_RANK") == "1":
    if sys.argv[2] == "exit":
        sys.exit(3)
    os.kill(os.getpid(), signal.SIGSTOP)
from dqrm_cpu.comm.transports.selection import open_transport
open_transport(sys.argv[1], timeout_s=3)
"""


@pytest.mark.parametrize(("transport", "how"), [("mpi", "exit"), ("oneccl", "exit"), ("mpi", "stop"), ("gloo", "stop")])
def test_a_rank_that_is_gone_before_mpi_started_is_not_waited_for_without_end(transport: str, how: str) -> None:
    # A forked process that stops itself is not the one that the launcher waits for.
    world = run_mpi(["-c", LATE, transport, how], 2, timeout_s=TIMEOUT_S, forked=how != "stop")
    assert not world.timed_out
    assert world.returncode != 0
    assert "waited more than 3 s for all ranks to start MPI. Another rank is gone" in world.ranks[0].stderr


LEAVING = """
import os, signal, sys
from dqrm_cpu.comm.transports.selection import open_transport
with open_transport(sys.argv[1], timeout_s=5) as transport:
    transport.barrier()
if transport.rank == 1:
    os.kill(os.getpid(), getattr(signal, sys.argv[2]))
"""


@pytest.mark.parametrize(
    ("transport", "how"), [("mpi", "SIGKILL"), ("mpi", "SIGSTOP"), ("oneccl", "SIGKILL"), ("gloo", "SIGKILL")]
)
def test_a_rank_that_is_gone_as_mpi_ends_is_not_waited_for_without_end(transport: str, how: str) -> None:
    world = run_mpi(["-c", LEAVING, transport, how], 4, timeout_s=TIMEOUT_S, forked=how != "SIGSTOP")
    assert not world.timed_out
    assert world.returncode != 0
    assert "waited more than 5 s for all ranks to end MPI. Another rank is gone" in world.ranks[0].stderr


OF_TWO_MINDS = """
import os, sys
from dqrm_cpu.comm.transports.selection import open_transport
rank = int(os.environ.get("PMI_RANK") or os.environ["RANK"])
open_transport(sys.argv[1 + rank], timeout_s=20)
"""


@pytest.mark.parametrize(("launcher", "names"), [("mpi", ("gloo", "mpi")), ("gloo", ("gloo", "oneccl"))])
def test_ranks_with_different_transports_are_told_so(launcher: str, names: tuple[str, str]) -> None:
    world = run_world(launcher, ["-c", OF_TWO_MINDS, *names], 2, timeout_s=TIMEOUT_S)
    assert not world.timed_out
    assert world.returncode != 0
    message = f"the ranks were given different transports, {names[0]} on rank 0, {names[1]} on rank 1: start all"
    assert [message in rank.stderr for rank in world.ranks] == [True, True], world.stderr


def test_a_launcher_of_another_mpi_is_refused() -> None:
    """Under Open MPI's mpirun another library sees no launcher: each process gets a world of one."""
    place = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}
    source = "from dqrm_cpu.comm.transports.selection import open_transport; open_transport('auto')"
    ended = subprocess.run(
        [sys.executable, "-c", source], env=clean_environ(place), capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert ended.returncode == 1
    assert "openmpi started 2 processes, this one as rank 1, but MPI sees a world of 1" in ended.stderr
    assert "start with the mpirun that came with this MPI library" in ended.stderr
