"""Lets numba import, while a process reads its first rows, what it would import at its first kernel."""

import functools
import gc
import sys

import numpy as np

from dqrm_cpu.data.prepare.rows import count_lines
from dqrm_cpu.data.prepare.words import PADDING

_SWITCH_INTERVAL_S = 0.0002
"""With Python's own, 5 ms, whoever reads text meanwhile would wait longer for the lock than it reads."""


@functools.cache
def start_kernels() -> None:
    """Calls the smallest kernel: numba then imports some eighty modules, a tenth of a second in which no row moves.

    Without collecting garbage: what is imported stays, and going through all of it again and again costs as much.
    """
    was_enabled, interval_s = gc.isenabled(), sys.getswitchinterval()
    gc.disable()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    try:
        count_lines(np.zeros(PADDING, np.uint8), 0)
        gc.freeze()
    finally:
        sys.setswitchinterval(interval_s)
        if was_enabled:
            gc.enable()
