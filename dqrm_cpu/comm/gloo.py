"""Transport over torch.distributed's gloo: needs no MPI, only sockets.

Gathers are all-to-alls of copies: there each message travels once, at its own length. gloo's own all-gather wants equal
lengths and hands every message around a ring, and its point-to-point messages wait milliseconds for each other.
"""

import datetime
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NoReturn

import numpy as np
import torch
import torch.distributed as dist

from dqrm_cpu.comm.buffers import Bytes, align
from dqrm_cpu.comm.launch import Launch
from dqrm_cpu.comm.rendezvous import meet
from dqrm_cpu.comm.transport import Array, Transport, last_words
from dqrm_cpu.errors import CommError


class GlooTransport(Transport):
    """All ranks of torch's default process group. A wait longer than `timeout_s`, or a lost rank, raises CommError."""

    def __init__(self, launch: Launch, timeout_s: float, reason: str, environ: Mapping[str, str]) -> None:
        super().__init__("gloo", launch.rank, launch.size, reason)
        if dist.is_initialized():
            raise CommError("torch.distributed is in use in this process already: close that process group first.")
        self._timeout_s = timeout_s
        store = meet(launch, environ, timeout_s)
        with self._waiting("the first meeting"):
            dist.init_process_group(
                "gloo",
                init_method=None if store else "env://",
                store=store,
                rank=launch.rank,
                world_size=launch.size,
                timeout=datetime.timedelta(seconds=timeout_s),
            )

    def barrier(self) -> None:
        with self._waiting("a barrier"):
            dist.barrier()

    def close(self) -> None:
        dist.destroy_process_group()

    def abort(self, reason: str) -> NoReturn:
        # Its sockets close with it: the others' waits end with an error, and torchrun or mpirun ends what is left.
        last_words(self.rank, self.size, reason)
        os._exit(1)

    @contextmanager
    def _waiting(self, what: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise CommError(
                f"rank {self.rank} of {self.size}: {what} of all ranks failed. Another rank is gone, or did not come "
                f"within {self._timeout_s:g} s: look at the other ranks' output, or allow a longer timeout. ({error})"
            ) from error

    def _broadcast(self, buffer: Array, root: int) -> None:
        with self._waiting("a broadcast"):
            dist.broadcast(_tensor(buffer), src=root)

    def _allgather(self, send: Array, receive: Array) -> None:
        with self._waiting("an allgather"):
            dist.all_to_all_single(_tensor(receive), self._for_everyone(_bytes(send), send.nbytes))

    def _alltoall(self, send: Array, receive: Array) -> None:
        with self._waiting("an all-to-all"):
            dist.all_to_all_single(_tensor(receive), _tensor(send))

    def _allgatherv(self, send: Bytes, receive: Bytes, counts: list[int], starts: list[int]) -> None:
        # Messages travel with their alignment, so that they arrive where they start.
        strides = [align(count) for count in counts]
        own = strides[self.rank]
        with self._waiting("an allgatherv"):
            dist.all_to_all_single(_tensor(receive), self._for_everyone(send, own), strides, [own] * self.size)

    def _for_everyone(self, message: Bytes, stride: int) -> torch.Tensor:
        """The message once for each rank, `stride` bytes apart."""
        copies = self.buffers.take("gloo.send", self.size * stride).reshape(self.size, stride)
        copies[:, : message.size] = message
        copies[:, message.size :] = 0
        return _tensor(copies.reshape(-1))


def _bytes(array: Array) -> Bytes:
    return array.reshape(-1).view(np.uint8)


def _tensor(array: Array) -> torch.Tensor:
    """The same memory as bytes: gloo moves any type that way."""
    return torch.from_numpy(_bytes(array))
