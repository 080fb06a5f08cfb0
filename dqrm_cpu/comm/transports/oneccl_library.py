"""oneCCL's CPU library as this package calls it: bytes between ranks, through a small C++ shim.

The shim is compiled once for each environment, and found again; several ranks may come at once.
"""

import contextlib
import ctypes
import fcntl
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from dqrm_cpu.base.kernel_cache import cache_roots
from dqrm_cpu.base.private import private_folder
from dqrm_cpu.comm.transport import Array
from dqrm_cpu.errors import CommError, DeviceError
from dqrm_cpu.kernels.ccl import SHIM_SOURCE, OneCclFiles, find_compiler, oneccl_files
from dqrm_cpu.kernels.sealed import is_whole, replace_sealed

_NAME = "libdqrm_ccl.so"
_FLAGS = ("-O2", "-std=c++17", "-shared", "-fPIC", "-Wall")
_COMPILE_LIMIT_S = 300
_INSTALL = "pip install 'dqrm-cpu[oneccl]'"

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
    "alltoallv": [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p],
}
_VERSION_BYTES = 64


def build_shim(environ: Mapping[str, str], files: OneCclFiles | None = None) -> Path:
    """Returns the compiled shim for this environment's oneCCL; compiles it where that was not done before."""
    files = oneccl_files() if files is None else files
    if files.missing:
        missing = ", ".join(str(path) for path in files.missing)
        raise DeviceError(f"the oneccl transport needs oneCCL for CPUs, and there is no {missing}: {_INSTALL}")
    problem = "no folder was tried"
    for root in cache_roots():
        try:
            folder = private_folder(root, f"oneccl-{platform.machine()}-{_fingerprint(files)}")
            if not is_whole(folder / _NAME):
                with _exclusively(folder / "lock"):
                    if not is_whole(folder / _NAME):
                        _compile(files, folder / _NAME, environ)
            return folder / _NAME
        except OSError as error:  # read-only, full, or somebody else's: the next root
            problem = str(error)
    raise DeviceError(f"the oneccl transport found no folder for its shim ({problem}): set XDG_CACHE_HOME to one")


def _fingerprint(files: OneCclFiles) -> str:
    """Changes with the shim, its flags and the library that it is linked to."""
    status = files.library.stat()
    stamp = hashlib.sha256(SHIM_SOURCE.read_bytes())
    stamp.update(f"{_FLAGS} {files.library} {status.st_size} {status.st_mtime_ns}".encode())
    return stamp.hexdigest()[:16]


@contextmanager
def _exclusively(lock: Path) -> Iterator[None]:
    """Waits while another process of this host compiles; without locks two may do so, each to a name of its own."""
    with lock.open("w") as held:
        with contextlib.suppress(OSError):
            fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _compile(files: OneCclFiles, target: Path, environ: Mapping[str, str]) -> None:
    compiler = find_compiler(environ)
    if compiler is None:
        raise DeviceError(
            f"the oneccl transport compiles a small shim, and there is no C++ compiler {environ.get('CXX') or 'g++'}: "
            f"apt-get install g++ (or dnf install gcc-c++), or set CXX; --comm.transport mpi needs none"
        )
    descriptor, name = tempfile.mkstemp(prefix=_NAME, dir=target.parent)
    os.close(descriptor)
    made = Path(name)
    where = files.library.parent
    command = [compiler, *_FLAGS, str(SHIM_SOURCE), f"-I{files.headers}", f"-L{where}", "-lccl", f"-Wl,-rpath,{where}"]
    try:
        ended = subprocess.run(
            [*command, "-o", str(made)], capture_output=True, text=True, timeout=_COMPILE_LIMIT_S, env=dict(environ)
        )
        if ended.returncode != 0:
            raise DeviceError(f"{compiler} could not compile the shim over oneCCL:\n{ended.stderr.strip()}")
        # Whole or not at all: a rank that looks meanwhile must not load half a library.
        replace_sealed(target, made.read_bytes())
    except subprocess.TimeoutExpired as error:
        raise DeviceError(f"{compiler} did not end within {_COMPILE_LIMIT_S} s") from error
    finally:
        made.unlink(missing_ok=True)


def oneccl_defaults(
    environ: Mapping[str, str], through_mpi: bool, offload: bool, prefix: Path = Path(sys.prefix)
) -> dict[str, str]:
    """Returns settings of oneCCL and libfabric for the variables that are not set yet."""
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


class OneCclCommunicator:
    """A communicator of all ranks. `share` hands rank 0's bytes, the address of the communicator, to every rank."""

    def __init__(self, shim: Path, rank: int, size: int, share: Callable[[bytes], bytes]) -> None:
        self._library = _load(shim)
        self._communicator = ctypes.c_void_p()
        self._size = size
        with _stdout_to_stderr():
            self._connect(rank, share)

    def _connect(self, rank: int, share: Callable[[bytes], bytes]) -> None:
        address = ctypes.create_string_buffer(self._library.dqrm_ccl_address_bytes())
        if rank == 0:
            self._call("host", address, ctypes.byref(self._communicator))
        shared = share(address.raw)
        if rank != 0:
            self._call("visit", shared, ctypes.byref(self._communicator))
        self._call("join", self._communicator, self._size, rank)

    @property
    def version(self) -> str:
        """Returns the library's version, as it reports it."""
        text = ctypes.create_string_buffer(_VERSION_BYTES)
        self._call("version", text, _VERSION_BYTES)
        return text.value.decode()

    def barrier(self) -> None:
        """Waits until every rank has called it."""
        self._call("barrier", self._communicator)

    def broadcast(self, buffer: Array, root: int) -> None:
        """Fills `buffer` on every rank with that of `root`."""
        self._call("broadcast", self._communicator, buffer.ctypes.data, buffer.nbytes, root)

    def allgatherv(self, send: Array, receive: Array, counts: Sequence[int], starts: Sequence[int]) -> None:
        """Gathers counts[r] bytes of rank r at byte starts[r] of `receive`."""
        places = np.array(starts, dtype=np.uint64) + np.uint64(receive.ctypes.data)
        lengths = np.array(counts, dtype=np.uint64)
        sent = send.ctypes.data, send.nbytes
        self._call("allgatherv", self._communicator, *sent, places.ctypes.data, lengths.ctypes.data)

    def alltoall(self, send: Array, receive: Array) -> None:
        """Sends part r of `send` to rank r, which receives it as this rank's part of `receive`; equal parts."""
        self._call("alltoall", self._communicator, send.ctypes.data, receive.ctypes.data, send.nbytes // self._size)

    def alltoallv(self, send: Array, sent: Sequence[int], receive: Array, arriving: Sequence[int]) -> None:
        """Sends the next sent[r] bytes of `send` to rank r, and fills the next arriving[r] of `receive` with its own.

        Both are full.
        """
        lengths = np.array([sent, arriving], dtype=np.uint64)
        places = send.ctypes.data, lengths[0].ctypes.data, receive.ctypes.data, lengths[1].ctypes.data
        self._call("alltoallv", self._communicator, *places)

    def close(self) -> None:
        """Leaves the other ranks."""
        communicator, self._communicator = self._communicator, ctypes.c_void_p()
        if communicator:
            self._call("leave", communicator)

    def _call(self, name: str, *arguments: Any) -> None:
        if getattr(self._library, f"dqrm_ccl_{name}")(*arguments):
            raise CommError(f"oneCCL failed in {name}: {self._library.dqrm_ccl_error().decode(errors='replace')}")


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Sends standard output to stderr meanwhile: oneCCL writes remarks to it, and it belongs to the results."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        ctypes.CDLL(None).fflush(None)
        os.dup2(kept, 1)
        os.close(kept)


def _load(shim: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(shim), mode=os.RTLD_NOW | os.RTLD_LOCAL)
    except OSError as error:
        raise DeviceError(f"the oneccl transport cannot load {shim} ({error}): {_INSTALL}") from error
    library.dqrm_ccl_error.restype = ctypes.c_char_p
    library.dqrm_ccl_address_bytes.restype = ctypes.c_size_t
    for name, signature in _SIGNATURES.items():
        getattr(library, f"dqrm_ccl_{name}").argtypes = signature
    return library
