"""How a shard lies in its file: a header, then blocks of rows whose sections start at multiples of 64 bytes.

docs/data-format.md describes every field. All numbers are little-endian. Kernels follow addresses, sizes and ids
without looking, so `read_header` believes nothing before it was compared with the file.
"""

from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from dqrm_cpu.data.store.manifest import ShardFile
from dqrm_cpu.errors import DataError

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
        """Returns the number of rows of a block; the last one may be shorter."""
        return min(BLOCK_ROWS, self.rows - block * BLOCK_ROWS)


def aligned(size: int) -> int:
    """Rounds a size up to the next multiple of ALIGNMENT."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def header_bytes(num_tables: int, num_blocks: int, bags: bool) -> int:
    """Returns the size of the header, to where the first block starts."""
    sections = num_blocks * (4 if bags else 3)
    return aligned(HEADER.itemsize + num_tables * COLUMN.itemsize + sections * SECTION.itemsize)


def column_offsets(id_bytes: NDArray[np.int64], rows: int) -> NDArray[np.int64]:
    """Returns where each column starts within the ids of a block, and where the last one ends: int64[T + 1]."""
    sizes = -(-id_bytes * rows // ALIGNMENT) * ALIGNMENT
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])


MEND = "copy it again from where it is whole, or prepare the data set again"

_ID_BYTES = (1, 2, 4)
_OFFSET_BYTES = 4


class DamagedShardError(DataError):
    """A file is not what its manifest says, or its bytes have changed."""


def read_header(path: Path, content: NDArray[np.uint8], expected: ShardFile) -> Header:
    """Reads the header of a mapped file uint8[n]; DamagedShardError if it and the file or `expected` differ."""
    fixed = content[: HEADER.itemsize].view(HEADER).copy()
    if fixed["magic"][0] != MAGIC:
        raise DamagedShardError(f"{path} is no shard: it starts with other bytes; {MEND}")
    if fixed["version"][0] != VERSION:
        raise DataError(
            f"{path} has format {fixed['version'][0]}, this version reads {VERSION}; use the dqrm-cpu that wrote it, "
            "or prepare the data set again"
        )
    if int(fixed["file_bytes"][0]) != content.size:
        raise DamagedShardError(f"{path} has {content.size:,} bytes, {fixed['file_bytes'][0]:,} were written; {MEND}")
    bags, tables, blocks = bool(fixed["bags"][0]), int(fixed["num_tables"][0]), int(fixed["num_blocks"][0])
    size = header_bytes(tables, blocks, bags)
    if size != fixed["header_bytes"][0] or size > content.size:
        raise DamagedShardError(f"{path}: the header is damaged; {MEND}")
    crc32 = int(fixed["header_crc32"][0])
    if crc32 != _header_crc32(content[:size]):
        raise DamagedShardError(f"{path}: the header is damaged; {MEND}")
    if crc32 != expected.crc32 or content.size != expected.bytes or int(fixed["rows"][0]) != expected.rows:
        raise DamagedShardError(f"{path} is whole, but not the file that its manifest names; {MEND}")
    columns_at = HEADER.itemsize
    sections_at = columns_at + tables * COLUMN.itemsize
    kinds = 4 if bags else 3
    sections = content[sections_at : sections_at + blocks * kinds * SECTION.itemsize].view(SECTION)
    columns = content[columns_at:sections_at].view(COLUMN).copy()
    header = Header(fixed, columns, sections.reshape(blocks, kinds).copy())
    mistake = _mistake_of_counts(header) or _mistake_of_columns(header) or _mistake_of_sections(header, content.size)
    if mistake:
        raise DamagedShardError(f"{path}: the header contradicts itself or the file: {mistake}; {MEND}")
    return header


def _header_crc32(head: NDArray[np.uint8]) -> int:
    without = head.copy()
    start = int(HEADER.fields["header_crc32"][1]) if HEADER.fields else 0
    without[start : start + 4] = 0
    return isal_zlib.crc32(without.data)


def _mistake_of_counts(header: Header) -> str:
    """Describes rows, blocks and kinds that do not go together, for a message; empty where they do."""
    if int(header.fixed["bags"][0]) > 1:
        return f"its kind of cells is {header.fixed['bags'][0]}, 0 or 1 is known"
    if int(header.fixed["block_rows"][0]) != BLOCK_ROWS:
        return f"blocks of {header.fixed['block_rows'][0]:,} rows, {BLOCK_ROWS:,} are known"
    if header.num_blocks != -(-header.rows // BLOCK_ROWS):
        return f"{header.rows:,} rows in {header.num_blocks:,} blocks"
    if int(header.fixed["clicks"][0]) > header.rows:
        return f"{header.fixed['clicks'][0]:,} clicks in {header.rows:,} rows"
    return ""


def _mistake_of_columns(header: Header) -> str:
    largest, width = header.columns["largest_id"], header.columns["id_bytes"]
    known = (4,) if header.bags else _ID_BYTES
    for column in np.flatnonzero(~np.isin(width, known))[:1].tolist():
        return f"ids of column {column} take {width[column]:,} bytes"
    for column in np.flatnonzero((largest < 0) | (largest >= np.int64(1) << (8 * width.astype(np.int64))))[:1].tolist():
        return f"the largest id of column {column} is {largest[column]}, in {width[column]} bytes"
    return ""


def _mistake_of_sections(header: Header, file_bytes: int) -> str:
    """Describes a section of another size than its rows take, or where none can lie, for a message; empty if none."""
    if not header.num_blocks:
        return ""
    offset, size = header.sections["offset"], header.sections["bytes"]
    wrong = size != _sizes(header, size)
    for block, kind in np.argwhere(wrong)[:1].tolist():
        return f"{_name(block, kind)} has {size[block, kind]:,} bytes, and {header.rows_of(block):,} rows"
    first = int(header.fixed["header_bytes"][0])
    # In this order nothing overflows: only offsets within the file are added to.
    beyond = (offset < first) | (offset > file_bytes) | (size > file_bytes - np.minimum(offset, file_bytes))
    for block, kind in np.argwhere(beyond | (offset % ALIGNMENT != 0))[:1].tolist():
        return f"{_name(block, kind)} begins at byte {offset[block, kind]:,} of {file_bytes:,}"
    start, after = offset.ravel()[1:], (offset + size).ravel()[:-1]
    for place in np.flatnonzero(start < after)[:1].tolist():
        return f"{_name(*divmod(place + 1, offset.shape[1]))} begins before the one in front of it ends"
    return ""


def _sizes(header: Header, stored: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Bytes that each section must have: uint64[num_blocks, kinds]. Those of the ids of bags are any number of ids."""
    num_dense, num_tables = int(header.fixed["num_dense"][0]), header.columns.size
    sizes = np.empty_like(stored)
    id_bytes = header.columns["id_bytes"].astype(np.int64)
    for blocks, rows in ((slice(None), BLOCK_ROWS), (slice(-1, None), header.rows_of(header.num_blocks - 1))):
        sizes[blocks, Section.LABEL] = rows
        sizes[blocks, Section.DENSE] = 4 * num_dense * rows
        if header.bags:
            sizes[blocks, Section.OFFSETS] = _OFFSET_BYTES * (num_tables * rows + 1)
        else:
            sizes[blocks, Section.IDS] = column_offsets(id_bytes, rows)[-1]
    if header.bags:
        sizes[:, Section.IDS] = stored[:, Section.IDS] // 4 * 4
    return sizes


def _name(block: int, kind: int) -> str:
    return f"the {Section(kind).name.lower()} section of block {block}"
