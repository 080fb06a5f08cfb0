"""numba's cache of compiled kernels, made to survive files that are damaged and disks that are full.

numba believes whatever it reads: a file cut short is an error in the middle of a step, and one flipped bit is executed.
Here every file ends in its checksum, and what does not match is compiled again. Nothing that goes wrong with the cache
ends a run: it only saves time.
"""

import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from numba import config
from numba.core.caching import FunctionCache, IndexDataCacheFile, UserProvidedCacheLocator

from ..sealed import is_whole, seal, warn


class _SealedFiles(IndexDataCacheFile):
    """An index and what it names, each with a seal behind it that numba's reader never comes to."""

    def _load_index(self) -> dict[Any, str]:
        index: dict[Any, str] = super()._load_index() if is_whole(Path(self._index_path)) else {}
        return index

    def _load_data(self, name: str) -> Any:
        if not is_whole(Path(self._data_path(name))):
            raise FileNotFoundError(name)  # which numba takes for a kernel that is not compiled yet
        return super()._load_data(name)

    @contextlib.contextmanager
    def _open_for_write(self, path: str) -> Iterator[io.BytesIO]:
        content = io.BytesIO()
        yield content
        with super()._open_for_write(path) as file:
            file.write(content.getvalue() + seal(content.getvalue()))


class _KernelCache(FunctionCache):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        if not isinstance(self._impl.locator, UserProvidedCacheLocator):
            raise RuntimeError("NUMBA_CACHE_DIR cannot be written to")
        plain = self._cache_file
        self._cache_file = _SealedFiles(self._cache_path, self._impl.filename_base, plain._source_stamp)

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
