"""splitmix64 for compiled code; `kernels/hashing.py` has it in plain Python."""

from typing import Any

import numpy as np

from ..hashing import FACTOR_1, FACTOR_2
from ..hashing import INCREMENT as _INCREMENT
from .compile import inlined

INCREMENT = np.uint64(_INCREMENT)
_FACTOR_1, _FACTOR_2 = np.uint64(FACTOR_1), np.uint64(FACTOR_2)


@inlined
def mix64(word: np.uint64) -> np.uint64:
    """Returns the finalizer of splitmix64: every bit of the result depends on every bit of the word."""
    word = (word ^ (word >> np.uint64(30))) * _FACTOR_1
    word = (word ^ (word >> np.uint64(27))) * _FACTOR_2
    return word ^ (word >> np.uint64(31))


@inlined
def splitmix64(word: np.uint64, counter: int) -> Any:
    """Returns number `counter` of the sequence that starts at `word`."""
    return mix64(word + np.uint64(counter) * INCREMENT)
