"""Compiles the shim over oneCCL once for each environment, and finds it again; several ranks may come at once."""

import contextlib
import fcntl
import hashlib
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from dqrm_cpu.base.private import private_folder
from dqrm_cpu.errors import DeviceError
from dqrm_cpu.kernel_cache import cache_roots
from dqrm_cpu.kernels.ccl import SHIM_SOURCE, OneCclFiles, find_compiler, oneccl_files
from dqrm_cpu.kernels.sealed import is_whole, seal

_NAME = "libdqrm_ccl.so"
_FLAGS = ("-O2", "-std=c++17", "-shared", "-fPIC", "-Wall")
_COMPILE_LIMIT_S = 300
INSTALL = "pip install 'dqrm-cpu[oneccl]'"


def built_shim(environ: Mapping[str, str], files: OneCclFiles | None = None) -> Path:
    """The compiled shim for this environment's oneCCL; compiles it where that was not done before."""
    files = oneccl_files() if files is None else files
    if files.missing:
        missing = ", ".join(str(path) for path in files.missing)
        raise DeviceError(f"the oneccl transport needs oneCCL for CPUs, and there is no {missing}: {INSTALL}")
    problem = "no folder was tried"
    for root in cache_roots():
        try:
            folder = private_folder(root, f"oneccl-{platform.machine()}-{_fingerprint(files)}")
            if not is_whole(folder / _NAME):
                with _only_one(folder / "lock"):
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
def _only_one(lock: Path) -> Iterator[None]:
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
        with made.open("rb+") as library:
            ending = seal(library.read())
            library.write(ending)
        # Whole or not at all: a rank that looks meanwhile must not load half a library.
        made.replace(target)
    except subprocess.TimeoutExpired as error:
        raise DeviceError(f"{compiler} did not end within {_COMPILE_LIMIT_S} s") from error
    finally:
        made.unlink(missing_ok=True)
