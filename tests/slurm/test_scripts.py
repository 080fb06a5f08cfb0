"""The other scripts, as they stand, on the virtual cluster; and what can be said of all of them without one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from slurm.jobs import ROOT, SETTINGS, Jobs, dqrm_cpu, losses, train_undisturbed
from slurm.local_cluster import LocalCluster

SCRIPTS = sorted((ROOT / "scripts" / "slurm").glob("*.sh"))
JOB_SCRIPTS = [path for path in SCRIPTS if path.name != "functions.sh"]

pytestmark = pytest.mark.timeout(300)


def test_shellcheck_finds_nothing() -> None:
    shellcheck = Path(sys.executable).parent / "shellcheck"
    done = subprocess.run(
        [shellcheck, "-x", *SCRIPTS, *Path(__file__).parent.glob("*.sh")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", JOB_SCRIPTS, ids=lambda path: path.name)
def test_a_script_names_no_account_or_partition_and_is_short(script: Path) -> None:
    lines = script.read_text().splitlines()
    header = " ".join(line for line in lines if line.startswith("#SBATCH"))
    assert not {"--account", "--partition"} & set(header.replace("=", " ").split())
    assert "--requeue" in header
    assert "--signal=B:USR1@" in header
    assert len(lines) < 100


@pytest.mark.long
@pytest.mark.slurm
def test_days_are_checked_one_by_one_and_prepared_once(jobs: Jobs, raw_days: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "prepared"
    env = {"DQRM_DAYS": str(raw_days), "DQRM_OUT": str(out), "DQRM_NUM_DAYS": "3", "DQRM_MAX_IND_RANGE": "1000"}
    job = jobs.submit("prepare_terabyte.sh", sbatch=("--array=0-2",), env=env)
    jobs.wait_until(lambda: (out / "manifest.json").exists(), "the data set", 240)
    jobs.wait_for_state(f"{job}_2", "COMPLETED", "FAILED")
    assert jobs.output().count("is whole\n") == 3
    assert jobs.output().count("all days are whole: preparing") == 1
    assert rows_of(out) == rows_of(data)


@pytest.mark.long
@pytest.mark.slurm
def test_a_damaged_day_is_not_prepared(jobs: Jobs, raw_days: Path, tmp_path: Path) -> None:
    days = tmp_path / "days"
    days.mkdir()
    (days / "day_0.gz").symlink_to(raw_days / "day_0.gz")
    (days / "day_1.gz").write_bytes((raw_days / "day_1.gz").read_bytes()[:-1000])
    env = {"DQRM_DAYS": str(days), "DQRM_OUT": str(tmp_path / "prepared"), "DQRM_NUM_DAYS": "2"}
    job = jobs.submit("prepare_terabyte.sh", sbatch=("--array=0-1",), env=env)
    jobs.wait_until(lambda: "unexpected end of file" in jobs.output(), "the mistake", 60)
    jobs.wait_for_state(f"{job}_1", "FAILED")
    assert not (tmp_path / "prepared").exists()


@pytest.mark.long
@pytest.mark.mpi
@pytest.mark.slurm
def test_doctor_looks_at_a_rank_per_socket_on_every_node(jobs: Jobs) -> None:
    env = {"DQRM_DOCTOR": "1", "DQRM_RUN_DIR": str(jobs.run_dir), "DQRM_LAUNCHER": "srun"}
    job = jobs.submit("tb_nnode.sh", sbatch=("--nodes=2",), env=env)
    jobs.wait_for_state(job, "COMPLETED", "FAILED")
    output = " ".join(jobs.output().split())
    assert "4 ranks on node1 (2), node2 (2)" in output
    assert "transport ok gloo" in output
    assert "every rank sees what rank 0 writes" in output
    assert not (jobs.run_dir / "metrics.jsonl").exists()


@pytest.mark.long
@pytest.mark.mpi
@pytest.mark.slurm
def test_two_ranks_on_each_node_train_as_four_simulated_ones(jobs: Jobs, data: Path, tmp_path: Path) -> None:
    few = ("--train.max-steps", "20", "--kernels", "torch")
    env = {"DQRM_RUN_DIR": str(jobs.run_dir)}
    jobs.wait_for_success(jobs.submit("tb_nnode.sh", *SETTINGS, *few, sbatch=("--nodes=2",), env=env))
    environment = json.loads((jobs.run_dir / "environment.json").read_text())
    assert [rank["host"] for rank in environment["ranks"]] == ["node1", "node1", "node2", "node2"]
    train_undisturbed(data, tmp_path / "simulated", *few, ranks=4)
    assert losses(jobs.run_dir) == losses(tmp_path / "simulated")


@pytest.mark.long
@pytest.mark.slurm
def test_kaggle_needs_no_launcher_and_is_not_run_again(jobs: Jobs, cluster: LocalCluster) -> None:
    options = ("--train.max-steps", "5", "--train.batch-size", "128", "--train.threads", "1")
    job = jobs.submit("kaggle_1node.sh", *options, env={"DQRM_RUN_DIR": str(jobs.run_dir)})
    jobs.wait_for_success(job)
    finished = (jobs.run_dir / "result.json").stat()
    cluster.run("scontrol", "requeue", job)
    jobs.wait_until(lambda: jobs.restarts(job) == 1 and jobs.state(job) == "COMPLETED", "the second try", 60)
    assert "holds a finished run" in jobs.output()
    assert (jobs.run_dir / "result.json").stat().st_mtime_ns == finished.st_mtime_ns


@pytest.mark.long
@pytest.mark.slurm
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_kaggle_on_a_gpu_ends_before_any_work_where_there_is_none(jobs: Jobs) -> None:
    job = jobs.submit("kaggle_gpu.sh", env={"DQRM_RUN_DIR": str(jobs.run_dir)})
    jobs.wait_for_state(job, "COMPLETED", "FAILED")
    assert "--device cuda needs an NVIDIA GPU" in jobs.output()
    assert jobs.state(job) == "FAILED"
    assert jobs.restarts(job) == 0
    assert not jobs.run_dir.exists()


def rows_of(folder: Path) -> str:
    """The first training rows of a data set, as text."""
    return dqrm_cpu("data", "head", str(folder), "--rows", "20")
