"""Where functions.sh puts ranks: their CPUs, variables and preloaded libraries, as the ranks themselves see them."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slurm.jobs import Jobs
from slurm.local_cluster import LocalCluster, real_hardware, why_not

LOOK = Path(__file__).with_name("look.sh")
PINS = ("auto", "core", "socket", "numa", "none")
CPUS = Path("/sys/devices/system/cpu")
ALLOWED = frozenset(os.sched_getaffinity(0))
ALLOCATOR = Path("/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4")

pytestmark = [pytest.mark.long, pytest.mark.mpi, pytest.mark.slurm, pytest.mark.timeout(120)]

Seen = list[dict[str, Any]]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """One node that has what the machine has, so that binding is real."""
    reason = why_not()
    if reason:
        pytest.skip(f"NO CLUSTER TESTS: PINNING IS NOT TESTED HERE: {reason}")
    with LocalCluster(tmp_path_factory.mktemp("node"), num_nodes=1, hardware=real_hardware()) as node:
        yield node


@pytest.fixture
def jobs(node: LocalCluster, tmp_path: Path) -> Iterator[Jobs]:
    jobs = Jobs(node, tmp_path)
    yield jobs
    jobs.cancel_all()


@pytest.mark.parametrize("tasks", [1, 2])
@pytest.mark.parametrize("launcher", ["mpirun", "srun-pmi2", "srun"])
def test_ranks_get_whole_cores_sockets_or_memory_nodes(launcher: str, tasks: int, jobs: Jobs, tmp_path: Path) -> None:
    look(jobs, tmp_path, launcher, tasks, PINS)
    share = len(ALLOWED) // tasks
    for pin in PINS:
        affinities = [frozenset(rank["affinity"]) for rank in seen_by_ranks(tmp_path, pin)]
        assert len(affinities) == tasks
        if pin == "none":
            assert set(affinities) == {ALLOWED}
        elif pin in ("auto", "core"):
            assert [len(affinity) for affinity in affinities] == [share] * tasks, pin
            assert len(frozenset().union(*affinities)) == share * tasks, f"{pin}: {affinities}"
        for affinity in affinities:
            assert affinity == whole(affinity, pin), pin


@pytest.mark.parametrize("launcher", ["mpirun", "srun-pmi2", "srun"])
def test_libraries_are_preloaded_into_ranks_alone(launcher: str, jobs: Jobs, tmp_path: Path) -> None:
    if not ALLOCATOR.exists():
        pytest.skip(f"NO ALLOCATOR TO PRELOAD: there is no {ALLOCATOR} (apt-get install libtcmalloc-minimal4)")
    look(jobs, tmp_path, launcher, 2, ["auto"], DQRM_PRELOAD=f"{ALLOCATOR.name} libabsent.so.1")
    for rank in seen_by_ranks(tmp_path, "auto"):
        assert rank["environ"]["LD_PRELOAD"] == str(ALLOCATOR)
        assert any(name.startswith("libtcmalloc_minimal") for name in rank["libraries"])
        assert not any(name.startswith("libtcmalloc_minimal") for name in rank["libraries_of_starter"])
    assert "DQRM_PRELOAD: there is no libabsent.so.1 here" in jobs.output()


def test_threads_and_workers_share_the_cpus_of_a_rank(jobs: Jobs, tmp_path: Path) -> None:
    look(jobs, tmp_path, "mpirun", 1, ["auto"], OMP_NUM_THREADS="", CCL_WORKER_COUNT="1")
    (rank,) = seen_by_ranks(tmp_path, "auto")
    asked = {"CCL_WORKER_COUNT": "1", "CCL_WORKER_OFFLOAD": "1", "CCL_WORKER_AFFINITY": "auto", "KMP_BLOCKTIME": "1"}
    threads = {"OMP_NUM_THREADS": str(max(1, len(ALLOWED) - 1))}
    assert {name: rank["environ"].get(name) for name in (asked | threads)} == asked | threads


def test_what_the_site_sets_stays(jobs: Jobs, tmp_path: Path) -> None:
    preset = {
        "OMP_NUM_THREADS": "7",
        "KMP_BLOCKTIME": "9",
        "I_MPI_PIN_DOMAIN": "numa",
        "CCL_WORKER_COUNT": "1",
        "CCL_WORKER_OFFLOAD": "0",
        "CCL_WORKER_AFFINITY": "0",
        "LD_PRELOAD": "libgomp.so.1",
        "SRUN_CPUS_PER_TASK": "1",
    }
    look(jobs, tmp_path, "mpirun", 1, ["socket"], **preset)
    (rank,) = seen_by_ranks(tmp_path, "socket")
    assert {name: rank["environ"].get(name) for name in preset} == preset


def test_what_cannot_be_chosen_ends_the_job_with_the_choices(jobs: Jobs, tmp_path: Path) -> None:
    with_pin = submit(jobs, tmp_path, "mpirun", 1, ["sockets"])
    jobs.wait_for_state(with_pin, "FAILED", timeout_s=30)
    with_launcher = submit(jobs, tmp_path, "mpiexec", 1, ["auto"])
    jobs.wait_for_state(with_launcher, "FAILED", timeout_s=30)
    assert "DQRM_PIN=sockets: choose auto, core, socket, numa or none" in jobs.output()
    assert "DQRM_LAUNCHER=mpiexec: choose mpirun, srun-pmi2, srun" in jobs.output()
    assert not (tmp_path / "seen").exists()


def look(jobs: Jobs, folder: Path, launcher: str, tasks: int, pins: tuple[str, ...] | list[str], **env: str) -> None:
    """Has `tasks` ranks that share the node write what they see, once for each way to pin."""
    job = submit(jobs, folder, launcher, tasks, pins, **env)
    jobs.wait_for_state(job, "COMPLETED", "FAILED", timeout_s=60)
    assert jobs.state(job) == "COMPLETED", jobs.output()


def submit(jobs: Jobs, folder: Path, launcher: str, tasks: int, pins: tuple[str, ...] | list[str], **env: str) -> str:
    share = (f"--ntasks-per-node={tasks}", f"--cpus-per-task={len(ALLOWED) // tasks}")
    asked = {"LOOK_PYTHON": sys.executable, "LOOK_FOLDER": str(folder / "seen"), "LOOK_PINS": " ".join(pins)}
    return jobs.submit(LOOK, sbatch=("--nodes=1", *share), env={**asked, "DQRM_LAUNCHER": launcher, **env})


def seen_by_ranks(folder: Path, pin: str) -> Seen:
    return [json.loads(path.read_text()) for path in sorted((folder / "seen" / pin).glob("*.json"))]


def whole(affinity: frozenset[int], pin: str) -> frozenset[int]:
    """`affinity`, widened to whole cores, sockets or memory nodes."""
    if pin == "numa":
        every = [numbers(path.read_text()) for path in Path("/sys/devices/system/node").glob("node*/cpulist")]
    elif pin in ("core", "socket"):
        name = {"core": "core_cpus_list", "socket": "package_cpus_list"}[pin]
        every = [numbers((CPUS / f"cpu{cpu}" / "topology" / name).read_text()) for cpu in affinity]
    else:
        return affinity
    return frozenset().union(*(domain for domain in every if domain & affinity)) & ALLOWED


def numbers(text: str) -> frozenset[int]:
    """Returns the numbers in a list such as 0-3,8."""
    ends = [part.split("-") for part in text.strip().split(",") if part]
    return frozenset(cpu for part in ends for cpu in range(int(part[0]), int(part[-1]) + 1))
