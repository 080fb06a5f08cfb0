"""Transport over oneCCL, called directly: for environments without Intel's PyTorch bindings, which are archived.

oneCCL only moves bytes. Its own sums would differ in their order, and those of 8-bit integers would wrap.
"""

import importlib.util
import itertools
import os
from collections.abc import Callable, Mapping
from typing import Any

from dqrm_cpu.comm.buffers import Bytes
from dqrm_cpu.comm.coordination import require_one_transport
from dqrm_cpu.comm.transport import Array
from dqrm_cpu.comm.transports.launch import HYDRA, TORCHRUN, Launch
from dqrm_cpu.comm.transports.mpi import end_joined_mpi, joined_mpi
from dqrm_cpu.comm.transports.oneccl_build import built_shim
from dqrm_cpu.comm.transports.oneccl_library import OneCclWorld, set_defaults
from dqrm_cpu.comm.transports.process_transport import WorldTransport
from dqrm_cpu.errors import CommError

_ADDRESS_KEY = "dqrm_cpu/oneccl"


class OneCclTransport(WorldTransport):
    """All ranks that the launcher started; under mpirun oneCCL moves its bytes through that MPI, else by libfabric."""

    _failures = (CommError,)

    def __init__(self, launch: Launch, timeout_s: float, reason: str, environ: Mapping[str, str], overlap: str) -> None:
        super().__init__("oneccl", launch.rank, launch.size, reason, timeout_s)
        shim = built_shim(environ)
        self._mpi: Any = None
        self._store: Any = None
        through_mpi = _meets_through_mpi(launch, environ)
        set_defaults(os.environ, through_mpi, offload=overlap == "on")
        share = (
            self._share_through_mpi(launch, timeout_s)
            if through_mpi
            else self._share_through_store(launch, timeout_s, environ)
        )
        self._shim, self._share = shim, share
        self._world = self._meet("the first meeting")
        self.reason = f"{reason} (oneCCL {self._world.version} through {os.environ['CCL_ATL_TRANSPORT']})"

    def barrier(self) -> None:
        with self._waiting("a barrier"):
            self._world.barrier()

    def _meet(self, what: str) -> OneCclWorld:
        with self._waiting(what):
            return OneCclWorld(self._shim, self.rank, self.size, self._share)

    def obstacle_beside(self) -> str:
        if os.environ.get("CCL_WORKER_OFFLOAD") == "0":
            return "oneCCL serves one thread under CCL_WORKER_OFFLOAD=0"
        return ""

    def _meet_again(self) -> None:
        self._world = self._meet("the second meeting")

    def _leave_again(self) -> None:
        self._world.leave()

    def _leave(self) -> None:
        self._world.leave()

    def _end_all(self) -> None:
        end_joined_mpi()

    def _share_through_mpi(self, launch: Launch, timeout_s: float) -> Callable[[bytes], bytes]:
        self._mpi = joined_mpi(launch, timeout_s, "oneccl")

        def share(mine: bytes) -> bytes:
            theirs: bytes = self._mpi.COMM_WORLD.bcast(mine, 0)
            return theirs

        return share

    def _share_through_store(
        self, launch: Launch, timeout_s: float, environ: Mapping[str, str]
    ) -> Callable[[bytes], bytes]:
        # Here, because it loads torch.distributed.
        from dqrm_cpu.comm.transports.rendezvous import introduced, shared_store

        self._store = shared_store(launch, environ, timeout_s)
        require_one_transport(introduced(self._store, launch, "transport", "oneccl"))
        numbers = itertools.count()  # every meeting has an address of its own

        def share(mine: bytes) -> bytes:
            number = next(numbers)
            if launch.rank == 0:
                self._store.set(f"{_ADDRESS_KEY}/{number}", mine.hex())
                return mine
            return bytes.fromhex(self._store.get(f"{_ADDRESS_KEY}/{number}").decode())

        return share

    def _broadcast(self, buffer: Array, root: int) -> None:
        with self._waiting("a broadcast"):
            self._world.broadcast(buffer, root)

    def _allgather(self, send: Array, receive: Array) -> None:
        counts = [send.nbytes] * self.size
        with self._waiting("an allgather"):
            self._world.allgatherv(send, receive, counts, [rank * send.nbytes for rank in range(self.size)])

    def _alltoall(self, send: Array, receive: Array) -> None:
        with self._waiting("an all-to-all"):
            self._world.alltoall(send, receive)

    def _allgatherv(self, send: Bytes, receive: Bytes, counts: list[int], starts: list[int]) -> None:
        with self._waiting("an allgatherv"):
            self._world.allgatherv(send, receive, counts, starts)


def _meets_through_mpi(launch: Launch, environ: Mapping[str, str]) -> bool:
    """Whether MPI started the ranks, so that it can also introduce them to each other."""
    if launch.launcher == TORCHRUN or importlib.util.find_spec("mpi4py") is None:
        return False
    return launch.launcher == HYDRA or not (environ.get("MASTER_ADDR") and environ.get("MASTER_PORT"))
