"""Large buffers on huge pages where the system has them: one page fault instead of 512, fewer misses of the TLB."""

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

_HUGE_PAGE_BYTES = 1 << 21
_ALIGNMENT = 64


def zeros(count: int, kind: "np.dtype[Any]") -> NDArray[Any]:
    """Zeros whose memory the system gives when it is first written to."""
    num_bytes = count * kind.itemsize
    if num_bytes < _HUGE_PAGE_BYTES:
        return np.zeros(count, kind)
    memory = mmap.mmap(-1, num_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared memory has no huge pages
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, kind, count)


class Arena:
    """One piece of memory, handed out in arrays that start at multiples of 64 bytes. Give each one more."""

    def __init__(self, num_bytes: int) -> None:
        self._memory = zeros(num_bytes, np.dtype(np.uint8))
        self._taken = 0

    def take(self, shape: tuple[int, ...], kind: "np.dtype[Any]") -> NDArray[Any]:
        """An array that nobody else has."""
        size = int(np.prod(shape)) * kind.itemsize
        array = self._memory[self._taken : self._taken + size].view(kind).reshape(shape)
        self._taken += -(-size // _ALIGNMENT) * _ALIGNMENT
        return array
