"""Eight sums in registers, in two fours: a multiply-add takes four cycles or more, and two can begin in each."""

from typing import Any

import numpy as np

from .compiled import inlined
from .vector import multiply_add, splat

FOUR = 4


@inlined
def add_four(sums: Any, row: Any, g0: np.float32, g1: np.float32, g2: np.float32, g3: np.float32) -> Any:
    """Four registers of sums, each with a multiple of `row` added."""
    s0, s1 = multiply_add(splat(g0), row, sums[0]), multiply_add(splat(g1), row, sums[1])
    return s0, s1, multiply_add(splat(g2), row, sums[2]), multiply_add(splat(g3), row, sums[3])


@inlined
def no_sums() -> Any:
    zeros = splat(np.float32(0))
    return zeros, zeros, zeros, zeros
