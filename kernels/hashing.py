"""splitmix64, the hash behind every number drawn here: it follows from a key and a counter, whoever asks and when.

Plain Python; `jit/hashing.py` has the same for compiled code.
"""

INCREMENT = 0x9E3779B97F4A7C15
FACTOR_1, FACTOR_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_SEED_FACTOR = 0xD1342543DE82EF95


def mix64(word: int) -> int:
    """Returns the finalizer of splitmix64: every bit of the result depends on every bit of the word."""
    word = (word ^ (word >> 30)) * FACTOR_1 % 2**64
    word = (word ^ (word >> 27)) * FACTOR_2 % 2**64
    return word ^ (word >> 31)


def splitmix64(word: int, counter: int) -> int:
    """Returns number `counter` of the sequence that starts at `word`."""
    return mix64((word + counter * INCREMENT) % 2**64)


def weights_word(seed: int, first: int = 0) -> int:
    """Returns where the hashes of initial weights start, counted from row `first` of the arena."""
    return (seed * _SEED_FACTOR + 1 + first * INCREMENT) % 2**64
