"""How the generator's functions are compiled, with their static types kept.

numba keeps a cached function although a function that it calls has changed; `kernel_cache.py` therefore gives every
state of these sources a cache folder of its own.
"""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import numba

P = ParamSpec("P")
R = TypeVar("R")

compiled: Callable[[Callable[P, R]], Callable[P, R]] = numba.njit(cache=True, error_model="numpy")
