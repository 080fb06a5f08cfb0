"""Jobs on a virtual cluster: every launcher, the time limit, a node that fails, a job that is cancelled."""

import json
from pathlib import Path

import pytest

from jobs import Jobs, assert_same_end, dqrm_cpu, losses
from local_cluster import LocalCluster

pytestmark = [pytest.mark.slow, pytest.mark.mpi, pytest.mark.slurm, pytest.mark.timeout(600)]


@pytest.mark.parametrize("launcher", ["mpirun", "srun-pmi2", "srun"])
def test_two_nodes_train_as_two_simulated_ranks(launcher: str, jobs: Jobs, undisturbed: Path) -> None:
    job = jobs.train("--train.max-steps", "60", env={"DQRM_LAUNCHER": launcher})
    jobs.wait_for_state(job, "COMPLETED", "FAILED")
    environment = json.loads((jobs.run_dir / "environment.json").read_text())
    assert [rank["host"] for rank in environment["ranks"]] == ["node1", "node2"], jobs.output()
    assert json.loads((jobs.run_dir / "result.json").read_text())["world_size"] == 2
    expected = {step: loss for step, loss in losses(undisturbed).items() if step <= 60}
    assert losses(jobs.run_dir) == expected


def test_time_limit_requeues_until_the_run_is_done(jobs: Jobs, undisturbed: Path) -> None:
    job = jobs.train()
    for restart in (1, 2):
        jobs.wait_for_step(100 * restart)
        jobs.signal(job)
        jobs.wait_until(lambda restart=restart: jobs.restarts(job) == restart, f"restart {restart}", 60)
    jobs.wait_for_state(job, "COMPLETED", "FAILED")
    assert_same_end(jobs.run_dir, undisturbed)
    assert not (jobs.run_dir / "interrupted.json").exists()


def test_slurm_itself_signals_before_the_limit(jobs: Jobs) -> None:
    options = ("--train.max-steps", "100000", "--train.epochs", "10000")
    job = jobs.train(*options, sbatch=("--time=1", "--signal=B:USR1@50"), env={"DQRM_LAUNCHER": "srun"})
    jobs.wait_until(lambda: jobs.restarts(job) == 2, "two restarts", 120)
    assert jobs.output().count("the time limit is near, and the run is saved: requeueing") >= 2


def test_a_node_fails_and_the_job_comes_back(jobs: Jobs, cluster: LocalCluster, undisturbed: Path) -> None:
    job = jobs.train()
    jobs.wait_for_step(100)
    cluster.fail("node2")
    jobs.wait_until(lambda: jobs.restarts(job) == 1, "the job to be requeued", 90)
    cluster.heal("node2")
    jobs.wait_for_state(job, "COMPLETED", "FAILED")
    assert_same_end(jobs.run_dir, undisturbed)


@pytest.mark.parametrize("launcher", ["mpirun", "srun-pmi2"])
def test_cancelling_leaves_a_checkpoint_and_no_process(launcher: str, jobs: Jobs, cluster: LocalCluster) -> None:
    job = jobs.train(env={"DQRM_LAUNCHER": launcher})
    jobs.wait_for_step(60)
    assert cluster.processes(str(jobs.run_dir))
    cluster.run("scancel", job)
    jobs.wait_for_state(job, "CANCELLED")
    jobs.wait_until(lambda: not cluster.processes(str(jobs.run_dir)), "the ranks to end", 30)
    assert jobs.restarts(job) == 0
    assert "normalized entropy" in dqrm_cpu("evaluate", "--run-dir", str(jobs.run_dir), "--checkpoint", "last")


def test_a_finished_job_is_not_run_again(jobs: Jobs, cluster: LocalCluster) -> None:
    job = jobs.train("--train.max-steps", "10", env={"DQRM_LAUNCHER": "srun"})
    jobs.wait_for_state(job, "COMPLETED", "FAILED")
    before = (jobs.run_dir / "result.json").stat()
    cluster.run("scontrol", "requeue", job)
    jobs.wait_until(lambda: jobs.restarts(job) == 1 and jobs.state(job) == "COMPLETED", "the second try", 60)
    assert "holds a finished run" in jobs.output()
    assert (jobs.run_dir / "result.json").stat().st_mtime_ns == before.st_mtime_ns
