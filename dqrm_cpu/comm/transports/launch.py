"""Rank and world size that a launcher gave this process, read from the environment alone."""

from collections.abc import Mapping
from dataclasses import dataclass

from dqrm_cpu.errors import CommError

HYDRA, OPEN_MPI, TORCHRUN, SLURM, NO_LAUNCHER = "hydra", "openmpi", "torchrun", "slurm", "none"


@dataclass(frozen=True)
class Launch:
    """The place of this process among all ranks.

    `launcher` is hydra (Intel MPI, MPICH), openmpi, torchrun, slurm or none.
    """

    rank: int
    size: int
    local_rank: int
    launcher: str


@dataclass(frozen=True)
class _Names:
    """The variables in which one launcher tells a process its rank and world size."""

    launcher: str
    rank: str
    size: str
    local_rank: str


_HYDRA = _Names(HYDRA, "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID")
_OPEN_MPI = _Names(OPEN_MPI, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK")
_TORCHRUN = _Names(TORCHRUN, "RANK", "WORLD_SIZE", "LOCAL_RANK")
_SLURM_STEP = _Names(SLURM, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
_SLURM_JOB = _Names(SLURM, "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")


def detect_launch(environ: Mapping[str, str]) -> Launch:
    """Finds the rank and world size that the launcher gave this process; a single rank where there is no launcher.

    Raises CommError where two launchers left different answers, or where one left half an answer.
    """
    launches = [(names, _read(environ, names)) for names in _candidates(environ)]
    if not launches:
        return Launch(rank=0, size=1, local_rank=0, launcher=NO_LAUNCHER)
    first_names, first = launches[0]
    for names, launch in launches[1:]:
        if (launch.rank, launch.size) != (first.rank, first.size):
            raise CommError(
                f"two launchers disagree about this process: {_describe(first_names, first)}, "
                f"{_describe(names, launch)}. Start it with one of them, and unset the variables of the other."
            )
    return first


def _candidates(environ: Mapping[str, str]) -> list[_Names]:
    """Returns every launcher whose variables are about this very process, the innermost first."""
    candidates = [names for names in (_HYDRA, _OPEN_MPI, _TORCHRUN) if names.rank in environ or names.size in environ]
    if _slurm_started_this_process(environ):
        candidates.append(_SLURM_STEP if _SLURM_STEP.size in environ else _SLURM_JOB)
    return candidates


def _slurm_started_this_process(environ: Mapping[str, str]) -> bool:
    """Says whether Slurm's numbers are about this process.

    The batch script itself carries SLURM_PROCID but no step. An mpirun or a torchrun inside a job is itself spread by a
    step of one task per node, and what it starts inherits that step's numbers: they count nodes, not ranks.
    """
    in_step = "SLURM_STEP_ID" in environ or "SLURM_STEPID" in environ
    started_by_agent = any(
        name in environ for name in (_HYDRA.local_rank, _OPEN_MPI.rank, "TORCHELASTIC_RUN_ID", "HYDRA_BSTRAP_LOCALHOST")
    )
    return in_step and _SLURM_STEP.rank in environ and not started_by_agent


def _read(environ: Mapping[str, str], names: _Names) -> Launch:
    rank = _number(environ, names.rank, names)
    size = _number(environ, names.size, names)
    local_rank = _local_rank(environ, names)
    if not 0 <= rank < size:
        raise CommError(f"{names.rank}={rank} is outside the world of {names.size}={size}: start the ranks anew.")
    return Launch(rank, size, local_rank, names.launcher)


def _local_rank(environ: Mapping[str, str], names: _Names) -> int:
    if names.local_rank in environ:
        return _number(environ, names.local_rank, names)
    # Under `srun --mpi=pmi2` PMI tells the place in the world, and Slurm the one on the host.
    if _slurm_started_this_process(environ) and _SLURM_STEP.local_rank in environ:
        return _number(environ, _SLURM_STEP.local_rank, _SLURM_STEP)
    return 0


def _number(environ: Mapping[str, str], name: str, names: _Names) -> int:
    text = environ.get(name)
    if text is None:
        raise CommError(f"{name} is not set though {names.launcher} set its other variables: set both or neither.")
    try:
        return int(text)
    except ValueError:
        raise CommError(f"{name}={text!r} is not a number: unset it, or start through {names.launcher}.") from None


def _describe(names: _Names, launch: Launch) -> str:
    return f"{names.launcher} says rank {launch.rank} of {launch.size} ({names.rank}, {names.size})"
