"""Memory that is kept from step to step, so that an exchange allocates nothing once it has seen its largest message."""

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

ALIGNMENT_BYTES = 64
"""A cache line, and the widest vector register."""


def align(num_bytes: int, alignment: int = ALIGNMENT_BYTES) -> int:
    """Returns the least multiple of `alignment` that holds `num_bytes`."""
    return -(-num_bytes // alignment) * alignment


class Buffers:
    """Named, growing, aligned byte buffers. A view keeps its contents until the same name is asked for again."""

    def __init__(self) -> None:
        self._held: dict[str, Bytes] = {}

    def take(self, name: str, num_bytes: int) -> Bytes:
        """Returns uint8[num_bytes] that starts on a cache line; its contents are undefined."""
        held = self._held.get(name)
        if held is None or held.size < num_bytes:
            # A quarter more than asked: sparse messages differ a little from step to step.
            held = _aligned(align(max(1, num_bytes + num_bytes // 4)))
            self._held[name] = held
        return held[:num_bytes]


def _aligned(num_bytes: int) -> Bytes:
    raw = np.empty(num_bytes + ALIGNMENT_BYTES, dtype=np.uint8)
    start = -raw.ctypes.data % ALIGNMENT_BYTES
    return raw[start : start + num_bytes]
