"""How the numba kernels are compiled: numerics as written, what Python calls cached on disk.

No fastmath: its reordering would make sums depend on the width of the machine's vectors. LLVM optimizes kernels
little: most are written in vectors, and run no faster for the third of the time to compile that more takes.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from numba import config
from numba import njit as numba_njit

from .cache import cached

_LEVEL = 1

Kernel = Callable[..., Any]
"""numba types the arguments when it compiles; it takes NumPy integers for int and int for NumPy integers."""

# Its published types leave out the options that skip wrappers.
njit: Callable[..., Kernel] = numba_njit


def serial(function: Kernel) -> Kernel:
    """A function that only kernels call: it needs no way in from Python, which takes longest to compile."""
    return njit(function, nogil=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)


def inlined(function: Kernel) -> Kernel:
    """A `serial` function that becomes part of each caller, so that vectors stay in registers."""
    return njit(
        function,
        nogil=True,
        error_model="numpy",
        forceinline=True,
        no_cpython_wrapper=True,
        no_cfunc_wrapper=True,
    )


def kernel(function: Kernel) -> Kernel:
    """What Python calls; `threads` gives work in it to all threads."""
    return _quick_to_compile(thorough_kernel(function))


def thorough_kernel(function: Kernel) -> Kernel:
    """The same where LLVM should vectorize innermost loops, or take branches out of them."""
    return cached(njit(function, nogil=True, error_model="numpy", no_cfunc_wrapper=True))


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
