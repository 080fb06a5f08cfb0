"""The gradient of a lookup, as it was pooled."""

from typing import Any

import numpy as np

from .bfloat import load_number
from .compiled import inlined
from .lookups import Lookups, Pooled, bag_length, sample_of
from .vector import divide, splat


@inlined
def divisor(lookups: Lookups, table: int, position: int) -> int:
    """What the gradient of a lookup is divided by; 0: nothing."""
    if lookups.mean:
        return int(bag_length(lookups, table, sample_of(lookups, table, position)))
    return 0


@inlined
def gradient_part(pooled: Pooled, at: int, count: int, length: int) -> Any:
    """The `count` elements from `at` on, zeros above, divided by the length of their bag if there is one."""
    g = load_number(pooled.place, at, count, pooled.is_bf16)
    if length:
        g = divide(g, splat(np.float32(length)))
    return g
