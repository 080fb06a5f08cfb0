"""Transports over torch.distributed: gloo, which needs only sockets; ccl, Intel's bindings; nccl between NVIDIA GPUs.

Gathers are all-to-alls of copies: there each message travels once, at its own length. gloo's own all-gather wants equal
lengths and hands every message around a ring, and its point-to-point messages wait milliseconds for each other.
"""

import datetime
import importlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from dqrm_cpu.comm.coordination import require_one_transport
from dqrm_cpu.comm.transport import Array, Bytes, Stretches, align
from dqrm_cpu.comm.transports.gpus import gpu_name, require_distinct_gpus, take_gpu
from dqrm_cpu.comm.transports.launch import Launch
from dqrm_cpu.comm.transports.mpi import abort_mpi
from dqrm_cpu.comm.transports.process_transport import ProcessTransport
from dqrm_cpu.comm.transports.rendezvous import gather_through_store, open_store, store_from_environment
from dqrm_cpu.errors import CommError, DeviceError

_STORE_TIMEOUT_MARGIN_S = 60.0
"""torch's own timeout comes after the watchdog's, whose message names the rank that is missing."""

_NO_TIMEOUT = datetime.timedelta(days=30)
"""The timeout of torch's operations: torch does not know that a rank which compiles is given as long as it takes."""


@dataclass(frozen=True)
class Backend:
    """A backend of torch.distributed, and the memory that it moves."""

    transport: str  # our name for it
    torch_name: str
    device: torch.device


def gloo_backend() -> Backend:
    """Returns the backend that needs only sockets."""
    return Backend("gloo", "gloo", torch.device("cpu"))


def ccl_backend(bindings: str) -> Backend:
    """Returns oneCCL's backend, which importing Intel's `bindings` registers."""
    try:
        importlib.import_module(bindings)
    except (ImportError, AttributeError, OSError) as error:
        raise DeviceError(
            f"{bindings} is installed and does not load beside torch {torch.__version__} ({error}): install the "
            f"wheel for this torch, or uninstall it and pip install 'dqrm-cpu[oneccl]'"
        ) from error
    return Backend("oneccl", "ccl", torch.device("cpu"))


def nccl_backend(launch: Launch) -> Backend:
    """Returns the backend between NVIDIA GPUs; takes one GPU for each rank of a host."""
    if not torch.cuda.is_available() or not dist.is_nccl_available():
        built = "sees no NVIDIA GPU" if torch.version.cuda else "is a CPU build"
        raise DeviceError(
            f"the nccl transport needs CUDA, and torch {torch.__version__} {built}: install torch from a CUDA index, "
            f"or use --comm.transport gloo"
        )
    return Backend("nccl", "nccl", take_gpu(launch))


class TorchTransport(ProcessTransport):
    """A transport between all ranks of torch's default process group."""

    _failures = (RuntimeError,)

    def __init__(
        self, backend: Backend, launch: Launch, timeout_s: float, reason: str, environ: Mapping[str, str]
    ) -> None:
        super().__init__(backend.transport, launch.rank, launch.size, reason, timeout_s)
        if dist.is_initialized():
            raise CommError("torch.distributed is in use in this process already: close that process group first.")
        self._device = backend.device
        self._group: dist.ProcessGroup | None = None  # torch's default one
        opened = open_store(launch, environ, timeout_s)
        with self._waiting("the start"):
            store = opened or store_from_environment(launch, environ, timeout_s + _STORE_TIMEOUT_MARGIN_S)
            require_one_transport(gather_through_store(store, launch, "transport", self.name))
            if backend.device.type == "cuda":
                # NCCL would fail in its first operation, with a message that names no rank.
                require_distinct_gpus(gather_through_store(store, launch, "gpu", gpu_name(backend.device)))
            dist.init_process_group(
                backend.torch_name, store=store, rank=launch.rank, world_size=launch.size, timeout=_NO_TIMEOUT
            )

    def barrier(self) -> None:
        with self._waiting("a barrier"):
            if self._device.type == "cpu":
                dist.barrier(self._group)
            else:
                # What runs beside this thread has ended once its result is here: NCCL's own barrier returns before.
                token = np.zeros(self.size, dtype=np.uint8)
                self._exchange(_tensor(token), token.copy())

    def overlap_obstacle(self) -> str:
        return "" if self.name == "gloo" else f"{self.name} through torch.distributed serves one thread"

    def _open_second(self) -> None:
        with self._waiting("the start of a second process group"):
            self._group = dist.new_group(timeout=_NO_TIMEOUT)

    def _close_second(self) -> None:
        dist.destroy_process_group(self._group)

    def _disconnect(self) -> None:
        dist.destroy_process_group()

    def _abort_all(self) -> None:
        # Its sockets close with this process: the others notice, and torchrun ends what is left. Hydra does not, where
        # it leaves it to the ranks to end each other.
        abort_mpi()

    def _broadcast(self, buffer: Array, root: int) -> None:
        with self._waiting("a broadcast"):
            moved = self._to_device(_tensor(buffer))
            dist.broadcast(moved, src=root, group=self._group)
            self._from_device(moved, buffer)

    def _allgather(self, send: Array, receive: Array) -> None:
        with self._waiting("an allgather"):
            self._exchange(self._for_everyone(_bytes(send), send.nbytes), receive)

    def _alltoall(self, send: Array, receive: Array) -> None:
        with self._waiting("an all-to-all"):
            self._exchange(_tensor(send), receive)

    def _allgatherv(self, send: Bytes, receive: Bytes, counts: list[int], starts: list[int]) -> None:
        # Messages travel with their alignment, so that they arrive where they start.
        strides = [align(count) for count in counts]
        own = strides[self.rank]
        with self._waiting("an allgatherv"):
            self._exchange(self._for_everyone(send, own), receive, strides, [own] * self.size)

    def _alltoallv(self, send: Bytes, sent: Stretches, receive: Bytes, arriving: Stretches) -> None:
        with self._waiting("an all-to-all"):
            self._exchange(_tensor(send), receive, arriving.widths, sent.widths)

    def _exchange(
        self, send: Tensor, receive: Array, received: list[int] | None = None, sent: list[int] | None = None
    ) -> None:
        moved = self._to_device(_tensor(receive), copied=False)
        dist.all_to_all_single(moved, self._to_device(send), received, sent, group=self._group)
        self._from_device(moved, receive)

    def _to_device(self, tensor: Tensor, copied: bool = True) -> Tensor:
        """Returns the same bytes, or room for as many, in the memory that the backend moves."""
        if self._device.type == "cpu":
            return tensor
        return tensor.to(self._device) if copied else torch.empty_like(tensor, device=self._device)

    def _from_device(self, moved: Tensor, array: Array) -> None:
        """Copies what arrived into `array`; waits for the backend where it runs beside this thread."""
        if self._device.type != "cpu":
            _tensor(array).copy_(moved)

    def _for_everyone(self, message: Bytes, stride: int) -> Tensor:
        """Returns the message once for each rank, `stride` bytes apart."""
        copies = self.buffers.take("torch.send", self.size * stride).reshape(self.size, stride)
        copies[:, : message.size] = message
        copies[:, message.size :] = 0
        return _tensor(copies.reshape(-1))


def _bytes(array: Array) -> Bytes:
    return array.reshape(-1).view(np.uint8)


def _tensor(array: Array) -> Tensor:
    """Returns the same memory as bytes, which every backend moves."""
    return torch.from_numpy(_bytes(array))
