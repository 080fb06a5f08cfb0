"""Cells with any number of values, such as tags: split, each value to its key, those that come again left out.

Spaces around a value do not count, and values that are missing are none. Of a cell with more different values than the
limit the first ones are kept, and the others counted.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.data.prepare.parse.values import category_key
from dqrm_cpu.kernels.jit.compile import thorough_kernel
from dqrm_cpu.kernels.jit.memory import byte_at

_SPACE = 32


class BagColumn(NamedTuple):
    """The values of a column in a block: keys[offsets[i] : offsets[i + 1]] are those of row i."""

    keys: NDArray[np.uint64]
    offsets: NDArray[np.int64]  # [n + 1]
    ids: NDArray[np.int32]  # of the keys; whoever looks them up writes them
    cut: int  # values beyond the limit

    @property
    def num_empty(self) -> int:
        """The number of rows without a value."""
        return int(np.count_nonzero(np.diff(self.offsets) == 0))


def bags_of_cells(text: NDArray[np.uint8], cells: NDArray[np.int64], separator: str, limit: int) -> BagColumn:
    """Reads cells with a separator between the values; cells int64[n, 2] says where each begins, and its bytes."""
    address, byte = text.ctypes.data, ord(separator)
    bounds = np.zeros(cells.shape[0] + 1, np.int64)
    count_parts(address, cells, byte, bounds)
    parts = np.empty((int(bounds[-1]), 2), np.int64)
    split_cells(address, cells, byte, parts)
    return bags_of_parts(text, parts, bounds, limit)


def bags_of_parts(
    text: NDArray[np.uint8], parts: NDArray[np.int64], bounds: NDArray[np.int64], limit: int
) -> BagColumn:
    """Reads values that are split already: those of row i are parts[bounds[i] : bounds[i + 1]], as cells are given."""
    keys, offsets = np.empty(parts.shape[0], np.uint64), np.zeros(bounds.size, np.int64)
    cut = int(distinct_keys(text.ctypes.data, parts, bounds, limit, keys, offsets))
    kept = keys[: offsets[-1]]
    return BagColumn(kept, offsets, np.empty(kept.size, np.int32), cut)


@thorough_kernel
def count_parts(text: int, cells: NDArray[np.int64], separator: int, bounds: NDArray[np.int64]) -> None:
    """Counts what separators part each cell into: bounds int64[n + 1] are the sums."""
    for i in range(cells.shape[0]):
        parts = np.int64(1)
        for k in range(cells[i, 1]):
            parts += byte_at(text, cells[i, 0] + k) == separator
        bounds[i + 1] = bounds[i] + parts


@thorough_kernel
def split_cells(text: int, cells: NDArray[np.int64], separator: int, parts: NDArray[np.int64]) -> None:
    """Writes where each part of each cell begins, and its bytes."""
    done = 0
    for i in range(cells.shape[0]):
        first, end = cells[i, 0], cells[i, 0] + cells[i, 1]
        for at in range(first, end + 1):
            if at == end or byte_at(text, at) == separator:
                parts[done, 0], parts[done, 1] = first, at - first
                done += 1
                first = at + 1


@thorough_kernel
def distinct_keys(
    text: int,
    parts: NDArray[np.int64],
    bounds: NDArray[np.int64],
    limit: int,
    keys: NDArray[np.uint64],
    offsets: NDArray[np.int64],
) -> Any:
    """Writes the different keys of each row, at most `limit`; returns how many values were left out for that."""
    written, cut = np.int64(0), np.int64(0)
    for i in range(bounds.shape[0] - 1):
        first = written
        for p in range(bounds[i], bounds[i + 1]):
            at, length = parts[p, 0], parts[p, 1]
            while length > 0 and byte_at(text, at) == _SPACE:
                at += 1
                length -= 1
            while length > 0 and byte_at(text, at + length - 1) == _SPACE:
                length -= 1
            key = category_key(text, at, length)
            is_new = key != np.uint64(0)
            for k in range(first, written):
                is_new = is_new and keys[k] != key
            if is_new and written - first < limit:
                keys[written] = key
                written += 1
            elif is_new:
                cut += 1
        offsets[i + 1] = written
    return cut
