"""Transport over oneCCL, called directly: for environments without Intel's PyTorch bindings, which are archived.

oneCCL only moves bytes. Its own sums would differ in their order, and those of 8-bit integers would wrap.
"""

import importlib.util
import itertools
import os
from collections.abc import Callable, Mapping
from typing import Any

from dqrm_cpu.comm.coordination import require_one_transport
from dqrm_cpu.comm.transport import Array, Bytes, Stretches
from dqrm_cpu.comm.transports.launch import HYDRA, TORCHRUN, Launch
from dqrm_cpu.comm.transports.mpi import abort_mpi, start_mpi
from dqrm_cpu.comm.transports.oneccl_library import OneCclCommunicator, build_shim, oneccl_defaults
from dqrm_cpu.comm.transports.process_transport import ProcessTransport
from dqrm_cpu.errors import CommError

_ADDRESS_KEY = "dqrm_cpu/oneccl"


class OneCclTransport(ProcessTransport):
    """A transport between all ranks that the launcher started.

    Under mpirun oneCCL moves its bytes through that MPI, else through libfabric.
    """

    _failures = (CommError,)

    def __init__(self, launch: Launch, timeout_s: float, reason: str, environ: Mapping[str, str], overlap: str) -> None:
        super().__init__("oneccl", launch.rank, launch.size, reason, timeout_s)
        shim = build_shim(environ)
        self._mpi: Any = None
        self._store: Any = None
        through_mpi = _started_by_mpi(launch, environ)
        # Before the library is loaded, which reads them once.
        os.environ.update(oneccl_defaults(os.environ, through_mpi, offload=overlap == "on"))
        share = (
            self._share_through_mpi(launch, timeout_s)
            if through_mpi
            else self._share_through_store(launch, timeout_s, environ)
        )
        self._shim, self._share = shim, share
        self._communicator = self._connect("the start")
        self.reason = f"{reason} (oneCCL {self._communicator.version} through {os.environ['CCL_ATL_TRANSPORT']})"

    def barrier(self) -> None:
        with self._waiting("a barrier"):
            self._communicator.barrier()

    def _connect(self, what: str) -> OneCclCommunicator:
        with self._waiting(what):
            return OneCclCommunicator(self._shim, self.rank, self.size, self._share)

    def overlap_obstacle(self) -> str:
        if os.environ.get("CCL_WORKER_OFFLOAD") == "0":
            return "oneCCL serves one thread under CCL_WORKER_OFFLOAD=0"
        return ""

    def _open_second(self) -> None:
        self._communicator = self._connect("the start of a second communicator")

    def _close_second(self) -> None:
        self._communicator.close()

    def _disconnect(self) -> None:
        self._communicator.close()

    def _abort_all(self) -> None:
        abort_mpi()

    def _share_through_mpi(self, launch: Launch, timeout_s: float) -> Callable[[bytes], bytes]:
        self._mpi = start_mpi(launch, timeout_s, "oneccl")

        def share(mine: bytes) -> bytes:
            theirs: bytes = self._mpi.COMM_WORLD.bcast(mine, 0)
            return theirs

        return share

    def _share_through_store(
        self, launch: Launch, timeout_s: float, environ: Mapping[str, str]
    ) -> Callable[[bytes], bytes]:
        # Here, because it loads torch.distributed.
        from dqrm_cpu.comm.transports.rendezvous import gather_through_store, shared_store

        self._store = shared_store(launch, environ, timeout_s)
        require_one_transport(gather_through_store(self._store, launch, "transport", "oneccl"))
        numbers = itertools.count()  # every communicator has an address of its own

        def share(mine: bytes) -> bytes:
            number = next(numbers)
            if launch.rank == 0:
                self._store.set(f"{_ADDRESS_KEY}/{number}", mine.hex())
                return mine
            return bytes.fromhex(self._store.get(f"{_ADDRESS_KEY}/{number}").decode())

        return share

    def _broadcast(self, buffer: Array, root: int) -> None:
        with self._waiting("a broadcast"):
            self._communicator.broadcast(buffer, root)

    def _allgather(self, send: Array, receive: Array) -> None:
        counts = [send.nbytes] * self.size
        with self._waiting("an allgather"):
            self._communicator.allgatherv(send, receive, counts, [rank * send.nbytes for rank in range(self.size)])

    def _alltoall(self, send: Array, receive: Array) -> None:
        with self._waiting("an all-to-all"):
            self._communicator.alltoall(send, receive)

    def _allgatherv(self, send: Bytes, receive: Bytes, counts: list[int], starts: list[int]) -> None:
        with self._waiting("an allgatherv"):
            self._communicator.allgatherv(send, receive, counts, starts)

    def _alltoallv(self, send: Bytes, sent: Stretches, receive: Bytes, arriving: Stretches) -> None:
        with self._waiting("an all-to-all"):
            self._communicator.alltoallv(send, sent.widths, receive, arriving.widths)


def _started_by_mpi(launch: Launch, environ: Mapping[str, str]) -> bool:
    """Says whether MPI started the ranks, so that it can also tell them oneCCL's address."""
    if launch.launcher == TORCHRUN or importlib.util.find_spec("mpi4py") is None:
        return False
    return launch.launcher == HYDRA or not (environ.get("MASTER_ADDR") and environ.get("MASTER_PORT"))
