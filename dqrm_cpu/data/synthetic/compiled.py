"""How the generator's functions are compiled, with their static types kept.

numba keeps a cached function although a function that it calls has changed; `kernel_cache.py` therefore gives every
state of these sources a cache folder of its own.
"""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import numba

from dqrm_cpu.kernels.numba_impl.cache import cached

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """A function of the generator, whose machine code is kept on disk."""
    kept: Callable[P, R] = cached(numba.njit(function, error_model="numpy"))
    return kept
