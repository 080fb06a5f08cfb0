"""How kernels are compiled, and where machine code is kept: numerics as written, what Python calls cached on disk.

No fastmath: its reordering would make sums depend on the width of the machine's vectors. LLVM optimizes kernels
little: most are written in vectors, and run no faster for the third of the time to compile that more takes.

The cache is numba's, made for many processes at once, damaged files and full disks. numba keeps an index beside the
code and believes both: two processes that compile at once can leave an index that names the wrong code, a file cut
short is an error in the middle of a step, and one flipped bit is executed. Here each compiled kernel is one file, which
holds what it was compiled for and ends in its checksum; it is named by that, and written under another name first. What
does not match is compiled again. Nothing that goes wrong with the cache ends a run: it only saves time.
"""

import contextlib
import fcntl
import hashlib
import os
import pickle
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numba
from numba import config
from numba import njit as numba_njit
from numba.core import serialize
from numba.core.caching import FunctionCache, UserProvidedCacheLocator
from numba.core.compiler_lock import global_compiler_lock

from ..collector import without_collector
from ..sealed import read_sealed, replace_sealed, warn
from .parts import PartCompiler

_LEVEL = 1
_LONGEST_S = 60.0
"""A kernel takes seconds: a process that compiles one for longer is stopped, and is not waited for."""

P = ParamSpec("P")
R = TypeVar("R")

Kernel = Callable[..., Any]
"""numba types the arguments when it compiles; it takes NumPy integers for int and int for NumPy integers."""

# Its published types leave out the options that skip wrappers.
njit: Callable[..., Kernel] = numba_njit

_PART: Any = {
    "nogil": True,
    "error_model": "numpy",
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
    "pipeline_class": PartCompiler,
}


def serial(function: Kernel) -> Kernel:
    """Compiles a function that only kernels call, as a part of them: there is no way in from Python."""
    return njit(function, **_PART)


def inlined(function: Kernel) -> Kernel:
    """Compiles a `serial` function that becomes part of each caller, so that vectors stay in registers."""
    return njit(function, forceinline=True, **_PART)


def kernel(function: Kernel) -> Kernel:
    """Compiles a function that Python calls; `threads` gives work in it to all threads."""
    return _quick_to_compile(thorough_kernel(function))


def thorough_kernel(function: Kernel) -> Kernel:
    """Compiles a `kernel` in which LLVM should vectorize innermost loops, or take branches out of them."""
    return cached(njit(function, nogil=True, error_model="numpy", no_cfunc_wrapper=True))


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compiles a cached function that Python calls, and that keeps its static types.

    numba keeps a cached function although one that it calls has changed: every state of the sources has a cache folder
    of its own (`base/kernel_cache.py`).
    """
    kept: Callable[P, R] = cached(njit(function, error_model="numpy", no_cfunc_wrapper=True))
    return kept


def compiled_part(function: Callable[P, R]) -> Callable[P, R]:
    """Compiles a `serial` function that keeps its static types."""
    kept: Callable[P, R] = serial(function)
    return kept


def _quick_to_compile(kernel: Any) -> Kernel:
    """Compiles this kernel, and what it calls, at a level of its own: the process may run other numba code."""
    compile_for_types = kernel.compile

    def compile_quickly(types: Any) -> Any:
        with _optimization_level(_LEVEL):
            return compile_for_types(types)

    kernel.compile = compile_quickly
    return kernel  # type: ignore[no-any-return]


@contextlib.contextmanager
def _optimization_level(level: int) -> Iterator[None]:
    settings: Any = config
    # Otherwise the compiler itself does so, after variables of the environment changed, and forgets our level.
    settings.reload_config()
    usual = settings.OPT
    settings.OPT = type(usual)(level)
    try:
        yield
    finally:
        settings.OPT = usual


class _KernelFiles:
    """The files of one function, in place of numba's index and data files; a key is what one was compiled for."""

    def __init__(self, folder: Path, function: str, source_stamp: object) -> None:
        self._folder, self._function = folder, function
        self._versions = numba.__version__, source_stamp

    def save(self, key: object, compiled: object) -> None:
        replace_sealed(self._path(key), serialize.dumps((self._versions, key, compiled)))

    def load(self, key: object) -> object | None:
        """Returns what was saved under `key`; None if there is nothing, or the file is damaged."""
        content = read_sealed(self._path(key))
        if content is None:
            return None
        versions, stored_key, compiled = pickle.loads(content)
        return compiled if (versions, stored_key) == (self._versions, key) else None

    def flush(self) -> None:
        """Removes the files of the function: numba calls it where one is to be compiled anew."""
        for path in self._folder.iterdir():
            if path.name.startswith(f"{self._function}.") and path.suffix == ".nbc":
                path.unlink(missing_ok=True)

    def _path(self, key: object) -> Path:
        digest = hashlib.sha256(repr((self._versions, key)).encode()).hexdigest()
        return self._folder / f"{self._function}.{digest[:24]}.nbc"


class _KernelCache(FunctionCache):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        if not isinstance(self._impl.locator, UserProvidedCacheLocator):
            raise RuntimeError("NUMBA_CACHE_DIR cannot be written to")
        stamp = self._impl.locator.get_source_stamp()
        files: Any = _KernelFiles(Path(self._cache_path), self._impl.filename_base, stamp)
        self._cache_file = files

    @contextlib.contextmanager
    def _guard_against_spurious_io_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            warn(f"compiled kernels are not kept in {self._cache_path}: {error.strerror or error}")


def cached(kernel: Any) -> Callable[..., Any]:
    """Has the machine code of a kernel kept on disk, where there is a folder for it."""
    settings: Any = config
    # Left to itself numba would write beside the sources, or into a folder that every program of this user shares.
    if settings.CACHE_DIR and hasattr(kernel, "_cache"):
        try:
            kernel._cache = _KernelCache(kernel.py_func)
            kernel.compile = _one_process_at_a_time(kernel.compile, Path(kernel._cache.cache_path), kernel.__name__)
        except RuntimeError as error:
            warn(f"compiled kernels are not kept: {error}")
    made: Callable[..., Any] = kernel
    return made


def _one_process_at_a_time(compile_for_types: Kernel, folder: Path, name: str) -> Kernel:
    """Has other processes wait while this one compiles the kernel, and then load what it has compiled."""

    def compile_or_load(types: Any) -> Any:
        # The compiler's own lock comes first: a thread that has it may want the kernel that another one waits for.
        with global_compiler_lock, _turn(folder / f"{name}.compiling"), without_collector():
            return compile_for_types(types)

    return compile_or_load


@contextlib.contextmanager
def _turn(path: Path) -> Iterator[None]:
    """Waits until the lock on the file is free, and holds it; goes on without where files cannot be locked."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError:
        yield
        return
    try:
        held = _locked(descriptor)
        yield
        if held:
            with contextlib.suppress(OSError):
                path.unlink()
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    """Waits for the lock; returns whether it is held."""
    until = time.monotonic() + _LONGEST_S
    while time.monotonic() < until:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.02)
        except OSError:
            return False
    return False
