"""How the generator's functions are compiled, with their static types kept.

A cached compilation is thrown away when the file of its function changes, not when that of a function it calls does:
after an edit of `draws.py` delete the cache, or the old draws stay inside the kernels.
"""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import numba

P = ParamSpec("P")
R = TypeVar("R")

compiled: Callable[[Callable[P, R]], Callable[P, R]] = numba.njit(cache=True, error_model="numpy")
compiled_parallel: Callable[[Callable[P, R]], Callable[P, R]] = numba.njit(
    parallel=True, cache=True, error_model="numpy"
)
prange: Callable[[int], range] = numba.prange
