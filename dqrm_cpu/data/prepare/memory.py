"""Large buffers on huge pages where the system has them: one page fault instead of 512, fewer misses of the TLB."""

import math
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
    """One piece of memory, handed out in parts that start at multiples of 64 bytes.

    The system gives a page when it is first touched, which costs more than what is then written to it: what one stage
    has touched is worth handing out again in the next.
    """

    def __init__(self, memory: NDArray[np.uint8]) -> None:
        self._memory = memory
        self._taken = 0

    @classmethod
    def of_bytes(cls, num_bytes: int) -> "Arena":
        """With new memory."""
        return cls(zeros(num_bytes, np.dtype(np.uint8)))

    @property
    def left(self) -> int:
        """Bytes that nobody has."""
        return max(0, self._memory.size - self._taken)

    def take(self, shape: tuple[int, ...], kind: "np.dtype[Any]") -> NDArray[Any]:
        """An array that nobody else has; of new memory where there is too little left. Holds anything."""
        size = math.prod(shape) * kind.itemsize
        if size > self.left:
            return zeros(math.prod(shape), kind).reshape(shape)
        array = self._memory[self._taken : self._taken + size].view(kind).reshape(shape)
        self._taken += -(-size // _ALIGNMENT) * _ALIGNMENT
        return array

    def part(self, num_bytes: int) -> "Arena":
        """An arena that nobody else has."""
        return Arena(self.take((num_bytes,), np.dtype(np.uint8)))

    def clear(self) -> None:
        """All of it may be handed out again: nobody uses what was."""
        self._taken = 0
