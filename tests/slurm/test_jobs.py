"""Jobs on a virtual cluster: every launcher, the time limit, a node that fails, a job that is cancelled."""

import json
import re
from pathlib import Path

import pytest

from slurm.jobs import MANNER, SETTINGS, Jobs, assert_same_end, dqrm_cpu, losses, train_undisturbed
from slurm.local_cluster import LocalCluster

pytestmark = [pytest.mark.long, pytest.mark.mpi, pytest.mark.slurm, pytest.mark.timeout(300)]


@pytest.mark.parametrize(
    ("launcher", "transport", "used"),
    [
        ("mpirun", "auto", "mpi"),
        ("mpirun", "oneccl", "oneccl"),
        ("srun-pmi2", "auto", "mpi"),
        ("srun", "auto", "gloo"),
        ("srun", "oneccl", "oneccl"),
    ],
)
def test_two_nodes_train_as_two_simulated_ranks(
    launcher: str, transport: str, used: str, jobs: Jobs, undisturbed: Path
) -> None:
    options = ("--train.max-steps", "60", "--comm.transport", transport)
    jobs.wait_for_success(jobs.train(*options, env={"DQRM_LAUNCHER": launcher}))
    environment = json.loads((jobs.run_dir / "environment.json").read_text())
    assert [rank["host"] for rank in environment["ranks"]] == ["node1", "node2"]
    assert environment["transport"]["name"] == used
    assert json.loads((jobs.run_dir / "result.json").read_text())["world_size"] == 2
    expected = {step: loss for step, loss in losses(undisturbed).items() if step <= 60}
    assert losses(jobs.run_dir) == expected


def test_slurm_signals_before_the_limit_until_the_run_is_done(jobs: Jobs, data: Path, tmp_path: Path) -> None:
    goal = tmp_path / "goal.toml"
    goal.write_text("[train]\nmax_steps = 1000000\nepochs = 100000\n")
    job = jobs.submit(
        *("tb_2node.sh", *MANNER, "--config", str(goal)),
        sbatch=("--time=1", "--signal=B:USR1@50"),
        env={"DQRM_RUN_DIR": str(jobs.run_dir)},
    )
    jobs.wait_until(lambda: jobs.restarts(job) == 2, "two restarts", 180)
    # The end comes into sight only now: however fast this machine is, the run needs a third try.
    steps = max(losses(jobs.run_dir), default=0) + 25
    goal.write_text(f"[train]\nmax_steps = {steps}\nepochs = 100000\n")
    jobs.wait_for_success(job)
    assert jobs.output().count("the time limit is near, and the run is saved: requeueing") >= 2
    assert not (jobs.run_dir / "interrupted.json").exists()
    uninterrupted = tmp_path / "uninterrupted"
    train_undisturbed(data, uninterrupted, "--train.max-steps", str(steps), "--train.epochs", "100000")
    assert_same_end(jobs.run_dir, uninterrupted)


@pytest.mark.parametrize("words", ["try 0", "2 ranks over mpi"])
def test_a_signal_that_comes_while_ranks_start_is_not_lost(words: str, jobs: Jobs) -> None:
    # MPI does lose it; the run must still be under way when the script repeats it.
    job = jobs.train("--train.max-steps", "100000", "--train.epochs", "100000")
    jobs.wait_until(lambda: words in jobs.output(), words, 60)
    jobs.signal(job)
    jobs.wait_until(lambda: jobs.restarts(job) == 1, "the job to be requeued", 60)
    assert "the time limit is near" in jobs.output()


@pytest.mark.parametrize("launcher", ["srun-pmi2", "srun"])
def test_srun_too_has_ranks_save_near_the_limit(launcher: str, jobs: Jobs) -> None:
    job = jobs.train(env={"DQRM_LAUNCHER": launcher})
    jobs.wait_for_step(10)
    jobs.signal(job)
    jobs.wait_until(lambda: jobs.restarts(job) == 1, "the job to be requeued", 60)
    assert "the time limit is near, and the run is saved" in jobs.output()


def test_ranks_that_do_not_save_are_requeued_before_the_limit(jobs: Jobs) -> None:
    sbatch = ("--nodes=2", "--ntasks-per-node=1", "--time=1")
    job = jobs.submit(Path(__file__).with_name("deaf.sh"), sbatch=sbatch, env={"DQRM_MARGIN": "60"})
    jobs.wait_until(lambda: "deaf\n" in jobs.output(), "the ranks", 30)
    jobs.signal(job)
    jobs.wait_until(lambda: jobs.restarts(job) == 1, "the job to be requeued", 40)
    assert "the time is over before the ranks have saved: requeueing" in jobs.output()


def test_a_node_fails_and_the_job_comes_back(jobs: Jobs, cluster: LocalCluster, undisturbed: Path) -> None:
    job = jobs.train()
    jobs.wait_for_step(50)
    cluster.fail("node2")
    jobs.wait_until(lambda: jobs.restarts(job) == 1, "the job to be requeued", 90)
    cluster.heal("node2")
    jobs.wait_for_success(job)
    assert "refuses" not in jobs.output()
    assert_same_end(jobs.run_dir, undisturbed)


def test_tables_of_a_lost_node_go_on_with_those_that_are_left(
    jobs: Jobs, cluster: LocalCluster, data: Path, tmp_path: Path
) -> None:
    # So wide that a table of 1,000 rows is worth sharding.
    options = ("--model.embedding-dim", "128", "--model.bottom-mlp", "13,64,128", "--comm.wire", "int8")
    job = jobs.submit(
        *("tb_nnode.sh", *SETTINGS, *options),
        sbatch=("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1"),
        env={"DQRM_RUN_DIR": str(jobs.run_dir), "DQRM_TABLES": "shard", "DQRM_PIN": "none"},
    )
    jobs.wait_for_step(50)
    cluster.fail("node2")
    jobs.wait_until(lambda: jobs.restarts(job) == 1, "the job to be requeued", 90)
    cluster.run("scontrol", "update", f"JobId={job}", "NumNodes=1", "NumTasks=1", "NumCPUs=1")
    jobs.wait_for_success(job)
    cluster.heal("node2")
    assert re.findall(r"tables: .* (\d+) whole on one, .* cut over (\d) ranks?", jobs.output())[0] == ("13", "2")
    assert json.loads((jobs.run_dir / "result.json").read_text())["world_size"] == 1
    (step,) = re.findall(r"resuming from .*step-0*(\d+)", jobs.output())

    # The same in one process that has all tables: two ranks until the checkpoint with which the second try began.
    alone = tmp_path / "alone"
    train_undisturbed(data, alone, *options, "--train.max-steps", step)
    train_undisturbed(data, alone, *options, "--resume", "auto", ranks=1)
    assert_same_end(jobs.run_dir, alone)


@pytest.mark.parametrize("launcher", ["mpirun", "srun-pmi2", "srun"])
def test_cancelling_leaves_a_checkpoint_and_no_process(launcher: str, jobs: Jobs, cluster: LocalCluster) -> None:
    job = jobs.train(env={"DQRM_LAUNCHER": launcher})
    jobs.wait_for_step(30)
    assert cluster.processes(str(jobs.run_dir))
    cluster.run("scancel", job)
    jobs.wait_for_state(job, "CANCELLED")
    jobs.wait_until(lambda: not cluster.processes(str(jobs.run_dir)), "the ranks to end", 30)
    assert jobs.restarts(job) == 0
    assert "normalized entropy" in dqrm_cpu("evaluate", "--run-dir", str(jobs.run_dir), "--checkpoint", "last")
