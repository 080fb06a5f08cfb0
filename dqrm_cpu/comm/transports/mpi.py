"""Transport over MPI: whatever library mpi4py finds, started by its own mpirun or by srun."""

import atexit
import importlib
import sys
import warnings
from typing import Any

from dqrm_cpu.comm.coordination import require_one_transport
from dqrm_cpu.comm.heartbeat.watchdog import process_deadline
from dqrm_cpu.comm.transport import Array, Bytes, Stretches, abort_message
from dqrm_cpu.comm.transports.launch import NO_LAUNCHER, SLURM, Launch
from dqrm_cpu.comm.transports.process_transport import ProcessTransport
from dqrm_cpu.errors import CommError, DeviceError

_SLURM_REMEDY = (
    "start through `srun --mpi=pmi2` (Intel MPI: with I_MPI_PMI_LIBRARY) or mpirun, or use the gloo transport"
)
_REMEDY = "start with the mpirun that came with this MPI library (for the mpi extra: the one in the environment's bin)"


def load_mpi() -> Any:
    """Returns the mpi4py.MPI module with MPI initialized; nothing else in the package may import mpi4py."""
    try:
        mpi4py = importlib.import_module("mpi4py")
        # Left to itself the import calls MPI_Init, which must not happen in a process that only looks.
        mpi4py.rc.initialize = False
        mpi4py.rc.finalize = True
        with warnings.catch_warnings():
            # It warns of a wrong launcher; check_world refuses it, and says what to do.
            warnings.simplefilter("ignore", RuntimeWarning)
            mpi = importlib.import_module("mpi4py.MPI")
    except (ImportError, RuntimeError) as error:
        raise DeviceError(f"the mpi transport cannot load MPI ({error}): pip install 'dqrm-cpu[mpi]'") from error
    if mpi.Is_finalized():
        raise CommError("MPI was finalized in this process and cannot start again: open one transport per process.")
    if not mpi.Is_initialized():
        # The watchdog calls MPI_Abort beside a main thread that waits in a collective.
        mpi.Init_thread(mpi.THREAD_MULTIPLE)
    return mpi


def check_world(launch: Launch, rank: int, size: int, library: str) -> None:
    """Raises CommError where launcher and MPI disagree about the world: each process would silently train alone."""
    if launch.launcher == NO_LAUNCHER or (launch.rank, launch.size) == (rank, size):
        return
    remedy = _SLURM_REMEDY if launch.launcher == SLURM else _REMEDY
    raise CommError(
        f"{launch.launcher} started {launch.size} processes, this one as rank {launch.rank}, but MPI sees a world of "
        f"{size} and calls it rank {rank}: the MPI library ({library}) does not belong to the launcher. "
        f"To fix this, {remedy}."
    )


def start_mpi(launch: Launch, timeout_s: float, transport: str) -> Any:
    """Does `load_mpi`, and checks that all ranks are in the launcher's world and were given the same transport."""
    # MPI waits without end for a rank that died before it joined, and Hydra does not notice.
    reason = (
        f"it waited more than {timeout_s:g} s for all ranks to start MPI. Another rank is gone or hangs before step 1: "
        f"look at the other ranks' output."
    )
    with process_deadline(timeout_s, abort_message(launch.rank, launch.size, reason)):
        mpi = load_mpi()
        atexit.register(_finalize_mpi, mpi, launch, timeout_s)
        chosen = mpi.COMM_WORLD.allgather(transport)
    check_world(
        launch, mpi.COMM_WORLD.rank, mpi.COMM_WORLD.size, mpi.Get_library_version().splitlines()[0].strip("\0 ")
    )
    require_one_transport(chosen)
    return mpi


def _finalize_mpi(mpi: Any, launch: Launch, timeout_s: float) -> None:
    """Ends MPI as this process exits, and the process with it where the other ranks let it wait too long.

    The heartbeat and the watchdog have ended by then, MPI_Finalize waits without end for a rank that is gone, and Hydra
    leaves the others alone when one is killed.
    """
    if mpi.Is_finalized():
        return
    reason = f"it waited more than {timeout_s:g} s for all ranks to end MPI. Another rank is gone or hangs as it exits."
    with process_deadline(timeout_s, abort_message(launch.rank, launch.size, reason)):
        mpi.Finalize()


def abort_mpi() -> None:
    """Ends all ranks where this process started MPI, also one that only let them find each other."""
    mpi: Any = sys.modules.get("mpi4py.MPI")
    if mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized():
        mpi.COMM_WORLD.Abort(1)


class MpiTransport(ProcessTransport):
    """A transport between all ranks of MPI_COMM_WORLD."""

    def __init__(self, launch: Launch, timeout_s: float, reason: str) -> None:
        mpi = self._mpi = start_mpi(launch, timeout_s, "mpi")
        self._comm = mpi.COMM_WORLD
        self._failures = (mpi.Exception,)
        super().__init__("mpi", self._comm.rank, self._comm.size, reason, timeout_s)

    def barrier(self) -> None:
        with self._waiting("a barrier"):
            self._comm.Barrier()

    def overlap_obstacle(self) -> str:
        if self._mpi.Query_thread() < self._mpi.THREAD_MULTIPLE:
            return "MPI was started without MPI_THREAD_MULTIPLE"
        return ""

    def _open_second(self) -> None:
        with self._waiting("the start of a second communicator"):
            self._comm = self._comm.Dup()

    def _close_second(self) -> None:
        with self._waiting("the shutdown of the second communicator"):
            self._comm.Free()

    def _disconnect(self) -> None:
        return

    def _abort_all(self) -> None:
        abort_mpi()

    def _broadcast(self, buffer: Array, root: int) -> None:
        with self._waiting("a broadcast"):
            self._comm.Bcast(buffer, root)

    def _allgather(self, send: Array, receive: Array) -> None:
        with self._waiting("an allgather"):
            self._comm.Allgather(send, receive)

    def _alltoall(self, send: Array, receive: Array) -> None:
        with self._waiting("an all-to-all"):
            self._comm.Alltoall(send, receive)

    def _allgatherv(self, send: Bytes, receive: Bytes, counts: list[int], starts: list[int]) -> None:
        with self._waiting("an allgatherv"):
            self._comm.Allgatherv(send, (receive, (counts, starts)))

    def _alltoallv(self, send: Bytes, sent: Stretches, receive: Bytes, arriving: Stretches) -> None:
        with self._waiting("an all-to-all"):
            self._comm.Alltoallv((send, (sent.counts, sent.starts)), (receive, (arriving.counts, arriving.starts)))
