"""numba's cache of compiled kernels, made for many processes at once, damaged files and full disks.

numba keeps an index beside the code and believes both: two processes that compile at once can leave an index that names
the wrong code, a file cut short is an error in the middle of a step, and one flipped bit is executed. Here each
compiled kernel is one file, which holds what it was compiled for and ends in its checksum; it is named by that, and
written under another name first. What does not match is compiled again. Nothing that goes wrong with the cache ends a
run: it only saves time.
"""

import contextlib
import hashlib
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numba
from numba import config
from numba.core import serialize
from numba.core.caching import FunctionCache, UserProvidedCacheLocator

from ..sealed import read_sealed, replace_sealed, warn


class _KernelFiles:
    """The files of one function, in place of numba's index and data files; a key is what one was compiled for."""

    def __init__(self, folder: Path, function: str, source_stamp: object) -> None:
        self._folder, self._function = folder, function
        self._versions = numba.__version__, source_stamp

    def save(self, key: object, compiled: object) -> None:
        replace_sealed(self._path(key), serialize.dumps((self._versions, key, compiled)))

    def load(self, key: object) -> object | None:
        """What was saved under `key`; None if there is nothing, or the file is damaged."""
        content = read_sealed(self._path(key))
        if content is None:
            return None
        versions, stored_key, compiled = pickle.loads(content)
        return compiled if (versions, stored_key) == (self._versions, key) else None

    def flush(self) -> None:
        """numba calls it where a function is to be compiled anew."""
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
    """A kernel whose machine code is kept on disk, where there is a folder for it."""
    settings: Any = config
    # Left to itself numba would write beside the sources, or into a folder that every program of this user shares.
    if settings.CACHE_DIR and hasattr(kernel, "_cache"):
        try:
            kernel._cache = _KernelCache(kernel.py_func)
        except RuntimeError as error:
            warn(f"compiled kernels are not kept: {error}")
    made: Callable[..., Any] = kernel
    return made
