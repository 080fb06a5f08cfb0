"""The transport of a single process, which may simulate several ranks; imports neither MPI nor torch.distributed."""

from typing import NoReturn

from dqrm_cpu.comm.buffers import Bytes
from dqrm_cpu.comm.transport import Array, Transport
from dqrm_cpu.errors import CommError


class SingleTransport(Transport):
    """A transport of one rank, which has nothing to move: each operation gives back what it was given."""

    def __init__(self, reason: str = "one process") -> None:
        super().__init__("single", rank=0, size=1, reason=reason)

    def barrier(self) -> None:
        return

    def close(self) -> None:
        return

    def abort(self, reason: str) -> NoReturn:
        raise CommError(reason)

    def _broadcast(self, buffer: Array, root: int) -> None:
        return

    def _allgather(self, send: Array, receive: Array) -> None:
        receive.reshape(-1)[:] = send.reshape(-1)

    def _alltoall(self, send: Array, receive: Array) -> None:
        receive[:] = send

    def _allgatherv(self, send: Bytes, receive: Bytes, counts: list[int], starts: list[int]) -> None:
        receive[starts[0] : starts[0] + counts[0]] = send
