"""How the kernels of preparation are compiled: cached, on the calling thread, without Python's lock.

Several threads of Python call them at once, each on arrays of its own.
"""

from collections.abc import Callable
from typing import Any

from numba import njit as numba_njit

from dqrm_cpu.kernels.numba_impl.cache import cached

Kernel = Callable[..., Any]

njit: Callable[..., Kernel] = numba_njit


def inlined(function: Kernel) -> Kernel:
    """A function that becomes part of each kernel that calls it."""
    return njit(
        function, nogil=True, error_model="numpy", forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True
    )


def kernel(function: Kernel) -> Kernel:
    """What Python calls."""
    return cached(njit(function, nogil=True, error_model="numpy", no_cfunc_wrapper=True))
