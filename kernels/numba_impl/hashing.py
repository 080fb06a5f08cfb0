"""Numbers that look random and depend on what they are for alone: the same whichever thread asks, in any order."""

import numpy as np

from .compiled import inlined

_WORD = 2**64 - 1
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
SEQUENCE_INCREMENT = 0x9E3779B97F4A7C15
"""From the word of one number of a sequence to that of the next, modulo 2^64."""


@inlined
def mixed(word: np.uint64, counter: int) -> np.uint64:
    """splitmix64: number `counter` of the sequence that starts at `word`."""
    z = word + np.uint64(counter) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def mixed_in_python(word: int, counter: int) -> int:
    """The same, from and to Python's integers."""
    z = (word + counter * SEQUENCE_INCREMENT) & _WORD
    z = ((z ^ (z >> 30)) * _FIRST) & _WORD
    z = ((z ^ (z >> 27)) * _SECOND) & _WORD
    return z ^ (z >> 31)
