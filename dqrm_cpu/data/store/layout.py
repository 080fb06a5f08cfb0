"""How a shard lies in its file: a header, then blocks of rows whose sections start at multiples of 64 bytes.

docs/data-format.md describes every field. All numbers are little-endian.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

MAGIC = b"DQRMROWS"
VERSION = 1
ALIGNMENT = 64
BLOCK_ROWS = 8192
"""Rows of every block but the last of a shard: about 1 MB, checked and read as a whole."""

HEADER = np.dtype(
    [
        ("magic", "S8"),
        ("version", "<u4"),
        ("header_bytes", "<u4"),
        ("header_crc32", "<u4"),  # of the header, with this field 0
        ("bags", "<u4"),  # 1 where a cell holds any number of ids
        ("rows", "<u8"),
        ("file_bytes", "<u8"),
        ("clicks", "<u8"),
        ("block_rows", "<u4"),
        ("num_blocks", "<u4"),
        ("num_dense", "<u4"),
        ("num_tables", "<u4"),
    ]
)
COLUMN = np.dtype([("largest_id", "<i4"), ("id_bytes", "<u4")])
SECTION = np.dtype([("offset", "<u8"), ("bytes", "<u8"), ("crc32", "<u4"), ("reserved", "<u4")])


class Section(IntEnum):
    """The sections of a block, in the order of the file."""

    LABEL = 0
    DENSE = 1
    IDS = 2
    OFFSETS = 3  # where a cell holds any number of ids


@dataclass(frozen=True)
class Header:
    """A header as NumPy records: one of HEADER, a COLUMN per table, a SECTION per block and kind."""

    fixed: NDArray[np.void]  # HEADER[1]
    columns: NDArray[np.void]  # COLUMN[T]
    sections: NDArray[np.void]  # SECTION[num_blocks, kinds]

    @property
    def rows(self) -> int:
        return int(self.fixed["rows"][0])

    @property
    def bags(self) -> bool:
        return bool(self.fixed["bags"][0])

    @property
    def num_blocks(self) -> int:
        return int(self.fixed["num_blocks"][0])

    def rows_of(self, block: int) -> int:
        """Rows of a block; the last one may be shorter."""
        return min(BLOCK_ROWS, self.rows - block * BLOCK_ROWS)


def aligned(size: int) -> int:
    """The next multiple of ALIGNMENT."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def header_bytes(num_tables: int, num_blocks: int, bags: bool) -> int:
    """Size of the header, to where the first block starts."""
    sections = num_blocks * (4 if bags else 3)
    return aligned(HEADER.itemsize + num_tables * COLUMN.itemsize + sections * SECTION.itemsize)


def column_offsets(id_bytes: NDArray[np.int64], rows: int) -> NDArray[np.int64]:
    """Where each column starts within the ids of a block, and where the last one ends: int64[T + 1]."""
    sizes = -(-id_bytes * rows // ALIGNMENT) * ALIGNMENT
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
