"""oneCCL's CPU library as this package calls it: bytes between ranks, through the compiled shim."""

import ctypes
import os
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from dqrm_cpu.comm.transports.oneccl_build import INSTALL
from dqrm_cpu.errors import CommError, DeviceError

Array = np.typing.NDArray[Any]

_SIGNATURES: dict[str, list[Any]] = {
    "version": [ctypes.c_char_p, ctypes.c_size_t],
    "host": [ctypes.c_char_p, ctypes.POINTER(ctypes.c_void_p)],
    "visit": [ctypes.c_char_p, ctypes.POINTER(ctypes.c_void_p)],
    "join": [ctypes.c_void_p, ctypes.c_int, ctypes.c_int],
    "leave": [ctypes.c_void_p],
    "barrier": [ctypes.c_void_p],
    "broadcast": [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int],
    "allgatherv": [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p],
    "alltoall": [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t],
}
_VERSION_BYTES = 64


def oneccl_defaults(
    environ: Mapping[str, str], through_mpi: bool, offload: bool, prefix: Path = Path(sys.prefix)
) -> dict[str, str]:
    """Settings of oneCCL and libfabric that are not set yet. Set ones stay."""
    defaults = {
        "CCL_LOG_LEVEL": "error",
        # A worker takes a core from training, only to wait. Without one oneCCL serves a single thread of a rank.
        "CCL_WORKER_OFFLOAD": "1" if offload else "0",
        # Ranks may be more than cores: a wait that only spins keeps the rank that is waited for from running.
        "CCL_YIELD": "sched_yield",
        "CCL_ATL_TRANSPORT": "mpi" if through_mpi else "ofi",
        "I_MPI_ROOT": str(prefix),
    }
    fabric = prefix / "lib" / "libfabric.so"
    if fabric.exists():
        # The wheel impi-rt lays libfabric's providers beside it, where neither looks by itself.
        defaults |= {"CCL_OFI_LIBRARY_PATH": str(fabric), "FI_PROVIDER_PATH": str(fabric.parent)}
    if environ.get("CCL_ATL_TRANSPORT", defaults["CCL_ATL_TRANSPORT"]) == "ofi":
        defaults["FI_PROVIDER"] = "tcp"
    return {name: value for name, value in defaults.items() if name not in environ}


class OneCclWorld:
    """All ranks. `share` hands rank 0's bytes to every rank: how they tell each other where they meet."""

    def __init__(self, shim: Path, rank: int, size: int, share: Callable[[bytes], bytes]) -> None:
        self._library = _loaded(shim)
        self._world = ctypes.c_void_p()
        self._size = size
        with _spoken_to_stderr():
            self._meet(rank, share)

    def _meet(self, rank: int, share: Callable[[bytes], bytes]) -> None:
        address = ctypes.create_string_buffer(self._library.dqrm_ccl_address_bytes())
        if rank == 0:
            self._call("host", address, ctypes.byref(self._world))
        shared = share(address.raw)
        if rank != 0:
            self._call("visit", shared, ctypes.byref(self._world))
        self._call("join", self._world, self._size, rank)

    @property
    def version(self) -> str:
        text = ctypes.create_string_buffer(_VERSION_BYTES)
        self._call("version", text, _VERSION_BYTES)
        return text.value.decode()

    def barrier(self) -> None:
        self._call("barrier", self._world)

    def broadcast(self, buffer: Array, root: int) -> None:
        self._call("broadcast", self._world, buffer.ctypes.data, buffer.nbytes, root)

    def allgatherv(self, send: Array, receive: Array, counts: Sequence[int], starts: Sequence[int]) -> None:
        """counts[r] bytes of rank r to byte starts[r] of `receive`."""
        places = np.array(starts, dtype=np.uint64) + np.uint64(receive.ctypes.data)
        lengths = np.array(counts, dtype=np.uint64)
        self._call("allgatherv", self._world, send.ctypes.data, send.nbytes, places.ctypes.data, lengths.ctypes.data)

    def alltoall(self, send: Array, receive: Array) -> None:
        self._call("alltoall", self._world, send.ctypes.data, receive.ctypes.data, send.nbytes // self._size)

    def leave(self) -> None:
        world, self._world = self._world, ctypes.c_void_p()
        if world:
            self._call("leave", world)

    def _call(self, name: str, *arguments: Any) -> None:
        if getattr(self._library, f"dqrm_ccl_{name}")(*arguments):
            raise CommError(f"oneCCL failed in {name}: {self._library.dqrm_ccl_error().decode(errors='replace')}")


def set_defaults(environ: MutableMapping[str, str], through_mpi: bool, offload: bool) -> None:
    """Before the library is loaded, which reads them once; C code sees what os.environ holds."""
    environ.update(oneccl_defaults(environ, through_mpi, offload))


@contextmanager
def _spoken_to_stderr() -> Iterator[None]:
    """oneCCL writes its remarks to standard output, which belongs to the results."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        ctypes.CDLL(None).fflush(None)
        os.dup2(kept, 1)
        os.close(kept)


def _loaded(shim: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(shim), mode=os.RTLD_NOW | os.RTLD_LOCAL)
    except OSError as error:
        raise DeviceError(f"the oneccl transport cannot load {shim} ({error}): {INSTALL}") from error
    library.dqrm_ccl_error.restype = ctypes.c_char_p
    library.dqrm_ccl_address_bytes.restype = ctypes.c_size_t
    for name, signature in _SIGNATURES.items():
        getattr(library, f"dqrm_ccl_{name}").argtypes = signature
    return library
