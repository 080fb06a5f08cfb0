"""A virtual cluster, a small data set, and the run that all jobs must repeat to the bit."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm.jobs import Jobs, dqrm_cpu, train_undisturbed
from slurm.local_cluster import LocalCluster, why_not


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Two nodes. Where there can be none, every test that wants it says so in the summary of the run."""
    reason = why_not()
    if reason:
        pytest.skip(f"NO CLUSTER TESTS: THE JOB SCRIPTS ARE NOT TESTED HERE: {reason}")
    with LocalCluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def raw_days(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three days in Criteo's form."""
    folder = tmp_path_factory.mktemp("raw")
    for day in range(3):
        dqrm_cpu("data", "generate", f"{folder}/day_{day}.gz", "--rows", "4000", "--seed", str(day + 1))
    return folder


@pytest.fixture(scope="session")
def data(raw_days: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The days as a prepared data set of small tables."""
    out = tmp_path_factory.mktemp("prepared") / "days"
    days = [f"{raw_days}/day_{day}.gz" for day in range(3)]
    dqrm_cpu("prepare", *days, "--format", "terabyte", "--max-ind-range", "1000", "--out", str(out))
    return out


@pytest.fixture(scope="session")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the same training in one process, two ranks simulated, never interrupted."""
    run_dir = tmp_path_factory.mktemp("runs") / "undisturbed"
    train_undisturbed(data, run_dir)
    return run_dir


@pytest.fixture
def jobs(cluster: LocalCluster, data: Path, tmp_path: Path) -> Iterator[Jobs]:
    """Submits jobs whose runs and output go to this test's folder; cancels what a failed test leaves."""
    jobs = Jobs(cluster, tmp_path, data)
    yield jobs
    jobs.cancel_all()
