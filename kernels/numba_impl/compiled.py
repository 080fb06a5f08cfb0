"""How the numba kernels are compiled: cached on disk, one thread or all, numerics as written.

No fastmath: its reordering would make sums depend on the width of the machine's vectors.
"""

from collections.abc import Callable
from typing import Any

from numba import njit

Kernel = Callable[..., Any]
"""numba types the arguments when it compiles; it takes NumPy integers for int and int for NumPy integers."""


def serial(function: Kernel) -> Kernel:
    """A function that other kernels call, or that has no work for several threads."""
    compiled: Kernel = njit(function, cache=True, nogil=True, error_model="numpy")
    return compiled


def parallel(function: Kernel) -> Kernel:
    """A kernel whose `prange` runs on all threads.

    The body of a `prange` must not write through a field of a NamedTuple: numba drops such writes without a word.
    Give the tuple to a serial function instead, or name the array outside of the loop.
    """
    compiled: Kernel = njit(function, cache=True, nogil=True, error_model="numpy", parallel=True)
    return compiled
