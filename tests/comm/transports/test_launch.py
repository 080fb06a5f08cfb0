"""Every launcher's variables are read, and disagreement is refused."""

import pytest

from dqrm_cpu.comm.transports.launch import Launch, detect_launch
from dqrm_cpu.errors import CommError

HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "4", "MPI_LOCALRANKID": "0"}
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "none"}
SLURM = {
    "SLURM_PROCID": "1",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_ID": "0",
}
SPREADING_STEP = {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0", "SLURM_STEP_ID": "0"}
"""What Slurm tells the one task a node that an mpirun or torchrun inside the job uses."""


def test_without_a_launcher_the_world_is_one_process() -> None:
    assert detect_launch({"HOME": "/home/me"}) == Launch(0, 1, 0, "none")


@pytest.mark.parametrize(
    ("environ", "launcher"),
    [(HYDRA, "hydra"), (OPEN_MPI, "openmpi"), (TORCHRUN, "torchrun"), (SLURM, "slurm")],
)
def test_each_launcher_is_read(environ: dict[str, str], launcher: str) -> None:
    assert detect_launch(environ) == Launch(1, 4, 0, launcher)


def test_srun_with_pmi2_agrees_with_itself() -> None:
    pmi = {"PMI_RANK": "1", "PMI_SIZE": "4", "SLURM_LOCALID": "0"}
    assert detect_launch(SLURM | pmi) == Launch(1, 4, 0, "hydra")
    assert detect_launch(SLURM | pmi | {"SLURM_LOCALID": "1"}).local_rank == 1


def test_the_step_counts_not_the_job() -> None:
    assert detect_launch(SLURM | {"SLURM_NTASKS": "8"}).size == 4


def test_the_batch_script_is_no_rank() -> None:
    assert detect_launch({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "7"}).size == 1


@pytest.mark.parametrize("environ", [HYDRA, OPEN_MPI, TORCHRUN])
def test_the_step_that_spreads_a_launcher_is_not_asked(environ: dict[str, str]) -> None:
    assert detect_launch(environ | SPREADING_STEP).size == 4


@pytest.mark.parametrize(
    ("environ", "names"),
    [
        (HYDRA | {"RANK": "0", "WORLD_SIZE": "1"}, ["hydra says rank 1 of 4", "torchrun says rank 0 of 1"]),
        (HYDRA | OPEN_MPI | {"OMPI_COMM_WORLD_RANK": "2"}, ["hydra says rank 1", "openmpi says rank 2"]),
        (SLURM | {"RANK": "0", "WORLD_SIZE": "4"}, ["torchrun says rank 0", "slurm says rank 1"]),
    ],
)
def test_disagreement_names_both(environ: dict[str, str], names: list[str]) -> None:
    with pytest.raises(CommError) as refused:
        detect_launch(environ)
    assert all(name in str(refused.value) for name in names)


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"RANK": "0"}, "WORLD_SIZE is not set"),
        ({"PMI_RANK": "0", "PMI_SIZE": "two"}, "PMI_SIZE='two' is not a number"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 is outside the world of WORLD_SIZE=2"),
    ],
)
def test_half_answers_are_refused(environ: dict[str, str], words: str) -> None:
    with pytest.raises(CommError, match=words):
        detect_launch(environ)
