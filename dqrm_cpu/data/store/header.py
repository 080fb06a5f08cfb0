"""Reads the header of a shard, and believes nothing that it says before it was compared with the file.

Kernels follow addresses, sizes and ids without looking, so every number that becomes one is checked here.
"""

from pathlib import Path

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from dqrm_cpu.data.store.layout import (
    ALIGNMENT,
    BLOCK_ROWS,
    COLUMN,
    HEADER,
    MAGIC,
    SECTION,
    VERSION,
    Header,
    Section,
    column_offsets,
    header_bytes,
)
from dqrm_cpu.data.store.manifest import ShardFile
from dqrm_cpu.errors import DataError

MEND = "copy it again from where it is whole, or prepare the data set again"

_ID_BYTES = (1, 2, 4)
_OFFSET_BYTES = 4


class DamagedShardError(DataError):
    """A file is not what its manifest says, or its bytes have changed."""


def read_header(path: Path, content: NDArray[np.uint8], expected: ShardFile) -> Header:
    """The header of a mapped file uint8[n]; DamagedShardError where it contradicts itself, the file or `expected`."""
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
    """Rows, blocks and kinds that do not go together, for a message; empty where they do."""
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
    """A section of another size than its rows take, or that lies where none can."""
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


def _sizes(header: Header, found: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Bytes that each section must have: uint64[num_blocks, kinds]. Those of the ids of bags are any number of ids."""
    num_dense, num_tables = int(header.fixed["num_dense"][0]), header.columns.size
    sizes = np.empty_like(found)
    id_bytes = header.columns["id_bytes"].astype(np.int64)
    for blocks, rows in ((slice(None), BLOCK_ROWS), (slice(-1, None), header.rows_of(header.num_blocks - 1))):
        sizes[blocks, Section.LABEL] = rows
        sizes[blocks, Section.DENSE] = 4 * num_dense * rows
        if header.bags:
            sizes[blocks, Section.OFFSETS] = _OFFSET_BYTES * (num_tables * rows + 1)
        else:
            sizes[blocks, Section.IDS] = column_offsets(id_bytes, rows)[-1]
    if header.bags:
        sizes[:, Section.IDS] = found[:, Section.IDS] // 4 * 4
    return sizes


def _name(block: int, kind: int) -> str:
    return f"the {Section(kind).name.lower()} section of block {block}"
