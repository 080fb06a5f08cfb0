"""Large buffers on huge pages where the system has them: one page fault instead of 512, fewer misses of the TLB."""

import math
import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.data.prepare.row_layout import Layout

PADDING = 64
"""Bytes that every buffer of text has beyond its end: parsers load eight bytes at a time, from any byte on."""

_HUGE_PAGE_BYTES = 1 << 21
_ALIGNMENT = 64


def zeros(count: int, kind: "np.dtype[Any]") -> NDArray[Any]:
    """Makes an array of zeros whose memory the system gives when it is first written to."""
    num_bytes = count * kind.itemsize
    if num_bytes < _HUGE_PAGE_BYTES:
        return np.zeros(count, kind)
    memory = mmap.mmap(-1, num_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared memory has no huge pages
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, kind, count)


class MemoryBlock:
    """A piece of memory that is handed out in parts, which start at multiples of 64 bytes.

    The system gives a page when it is first touched, which costs more than what is then written to it: what one stage
    has touched is worth handing out again in the next.
    """

    def __init__(self, memory: NDArray[np.uint8]) -> None:
        self._memory = memory
        self._taken = 0

    @classmethod
    def of_bytes(cls, num_bytes: int) -> "MemoryBlock":
        """Makes a block of new memory."""
        return cls(zeros(num_bytes, np.dtype(np.uint8)))

    @property
    def left(self) -> int:
        """How many bytes are not handed out."""
        return max(0, self._memory.size - self._taken)

    def take(self, shape: tuple[int, ...], kind: "np.dtype[Any]") -> NDArray[Any]:
        """Hands out an array, not cleared; of new memory where there is too little left."""
        size = math.prod(shape) * kind.itemsize
        if size > self.left:
            return zeros(math.prod(shape), kind).reshape(shape)
        array = self._memory[self._taken : self._taken + size].view(kind).reshape(shape)
        self._taken += -(-size // _ALIGNMENT) * _ALIGNMENT
        return array

    def part(self, num_bytes: int) -> "MemoryBlock":
        """Hands out a part as a block of its own."""
        return MemoryBlock(self.take((num_bytes,), np.dtype(np.uint8)))

    def clear(self) -> None:
        """Takes everything back to be handed out again; nobody may use what was handed out."""
        self._taken = 0


class RowBuffers:
    """Memory for the rows of one block, used again for later ones."""

    def __init__(self, layout: Layout, block: MemoryBlock) -> None:
        schema = layout.raw
        self.num_dense, self.num_tables = schema.num_dense, schema.num_tables
        self.width = self.num_dense + self.num_tables + 1
        self._key_type = np.dtype(np.uint64 if layout.has_text else np.uint32)
        self._block = block
        self._capacity = -1
        self._text = zeros(0, np.dtype(np.uint8))

    def reserve_text(self, num_bytes: int) -> NDArray[np.uint8]:
        """Returns memory for so many bytes of text without its quotes."""
        if num_bytes > self._text.size:
            self._text = zeros(num_bytes + num_bytes // 8, np.dtype(np.uint8))
        return self._text

    def reserve(self, rows: int) -> None:
        """Makes room for so many rows."""
        if rows <= self._capacity:
            return
        rows += rows // 8
        num_bytes = rows * row_bytes(self.num_dense, self.num_tables, self._key_type.itemsize) + 6 * 64
        self._block.clear()
        block = self._block if num_bytes <= self._block.left else MemoryBlock.of_bytes(num_bytes)
        word, signed = np.dtype(np.uint32), np.dtype(np.int32)
        self.label: NDArray[np.uint32] = block.take((rows,), word)
        self.dense: NDArray[np.float32] = block.take((rows, self.num_dense), np.dtype(np.float32))
        self.keys: NDArray[Any] = block.take((self.num_tables, rows), self._key_type)
        # A key of 32 bits is not needed any more once its id is known.
        is_narrow = self._key_type.itemsize == signed.itemsize
        self.ids: NDArray[np.int32] = (
            self.keys.view(signed) if is_narrow else block.take((self.num_tables, rows), signed)
        )
        self.places: NDArray[np.int32] = block.take((rows,), signed)
        self.records: NDArray[np.uint32] = block.take((rows, self.width), word)
        self._capacity = rows


def row_bytes(num_dense: int, num_tables: int, key_bytes: int) -> int:
    """Counts the bytes of a row: label, place, dense, keys, ids where they do not replace keys, the record."""
    words = 2 + num_dense + (num_dense + num_tables + 1) + (num_tables if key_bytes != 4 else 0)
    return 4 * words + num_tables * key_bytes
