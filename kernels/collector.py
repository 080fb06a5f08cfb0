"""Python's collector of cycles, which imports and compilers keep busy for nothing."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """Leaves cycles of objects for later, in which next to nothing is garbage.

    The more objects there are the longer the collector goes through them: a fifth of the time to import torch and
    numba, a tenth of that to compile kernels.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
