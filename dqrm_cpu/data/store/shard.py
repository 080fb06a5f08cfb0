"""One shard as a memory map: what its header says, and blocks that are checked before anything reads them."""

from pathlib import Path

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from dqrm_cpu.data.store.layout import (
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
from dqrm_cpu.data.store.schema import Schema
from dqrm_cpu.errors import DataError

_MEND = "copy it again from where it is whole, or prepare the data set again"


class DamagedShardError(DataError):
    """A file is not what its manifest says, or its bytes have changed."""


class Shard:
    """A mapped file. Opening it checks the header; each block is to be checked by `check_block` before it is used."""

    def __init__(self, path: Path, expected: ShardFile) -> None:
        self.path = path
        self._bytes = _map(path)
        self.header = _read_header(path, self._bytes, expected)

    @property
    def id_bytes(self) -> NDArray[np.int64]:
        """Bytes of an id in each column."""
        return self.header.columns["id_bytes"].astype(np.int64)

    def address(self, block: int, section: Section) -> int:
        """Where a section lies in memory, as long as this object lives."""
        return int(self._bytes.ctypes.data) + int(self.header.sections[block, section]["offset"])

    def check_block(self, block: int) -> None:
        """DamagedShardError names the section whose checksum does not fit."""
        for section in list(Section)[: self.header.sections.shape[1]]:
            self._checked(block, section)

    def damages(self, block: int) -> list[str]:
        """What is wrong with each of a block's sections that is not whole."""
        found = []
        for section in list(Section)[: self.header.sections.shape[1]]:
            try:
                self._checked(block, section)
            except DamagedShardError as error:
                found.append(str(error))
        return found

    def block_bytes(self, block: int) -> int:
        """Bytes of a block's sections."""
        return int(self.header.sections[block]["bytes"].sum())

    def labels(self, block: int) -> NDArray[np.uint8]:
        """The labels of a block, once they were checked."""
        return self._checked(block, Section.LABEL)

    def _checked(self, block: int, section: Section) -> NDArray[np.uint8]:
        where = self.header.sections[block, section]
        start, size = int(where["offset"]), int(where["bytes"])
        content = self._bytes[start : start + size]
        if isal_zlib.crc32(content.data) != int(where["crc32"]):
            first = block * BLOCK_ROWS
            rows = f"rows {first:,} to {first + self.header.rows_of(block) - 1:,}"
            raise DamagedShardError(
                f"{self.path}: the {section.name.lower()} section of block {block} ({rows}) is damaged; {_MEND}"
            )
        return content

    def require_schema(self, schema: Schema, table_rows: tuple[int, ...], bags: bool) -> None:
        """No id may lie beyond its table: kernels follow ids without looking."""
        found = self.header.columns.size, int(self.header.fixed["num_dense"][0]), self.header.bags
        if found != (schema.num_tables, schema.num_dense, bags):
            raise DamagedShardError(f"{self.path} has not the columns of its manifest or of its neighbours; {_MEND}")
        largest = self.header.columns["largest_id"]
        for name, most, rows in zip(schema.categorical, largest.tolist(), table_rows, strict=True):
            if most >= rows:
                raise DamagedShardError(
                    f"{self.path}: column {name} has id {most}, and its table {rows} rows; prepare the data set again"
                )


def _map(path: Path) -> NDArray[np.uint8]:
    try:
        if path.stat().st_size < HEADER.itemsize:
            raise DamagedShardError(f"{path} has only {path.stat().st_size} bytes, too few for a header; {_MEND}")
        return np.memmap(path, np.uint8, "r")
    except FileNotFoundError:
        raise DamagedShardError(f"{path} is missing, its manifest names it; {_MEND}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be mapped ({error.strerror}); may you read it?") from error


def _read_header(path: Path, content: NDArray[np.uint8], expected: ShardFile) -> Header:
    fixed = content[: HEADER.itemsize].view(HEADER).copy()
    if fixed["magic"][0] != MAGIC:
        raise DamagedShardError(f"{path} is no shard: it starts with other bytes; {_MEND}")
    if fixed["version"][0] != VERSION:
        raise DataError(
            f"{path} has format {fixed['version'][0]}, this version reads {VERSION}; prepare the data set again"
        )
    if int(fixed["file_bytes"][0]) != content.size:
        raise DamagedShardError(f"{path} has {content.size:,} bytes, {fixed['file_bytes'][0]:,} were written; {_MEND}")
    bags, tables, blocks = bool(fixed["bags"][0]), int(fixed["num_tables"][0]), int(fixed["num_blocks"][0])
    size = header_bytes(tables, blocks, bags)
    if size != fixed["header_bytes"][0] or size > content.size:
        raise DamagedShardError(f"{path}: the header is damaged; {_MEND}")
    crc32 = int(fixed["header_crc32"][0])
    if crc32 != _header_crc32(content[:size]):
        raise DamagedShardError(f"{path}: the header is damaged; {_MEND}")
    if crc32 != expected.crc32 or content.size != expected.bytes or int(fixed["rows"][0]) != expected.rows:
        raise DamagedShardError(f"{path} is whole, but not the file that its manifest names; {_MEND}")
    columns_at = HEADER.itemsize
    sections_at = columns_at + tables * COLUMN.itemsize
    kinds = 4 if bags else 3
    sections = content[sections_at : sections_at + blocks * kinds * SECTION.itemsize].view(SECTION)
    return Header(fixed, content[columns_at:sections_at].view(COLUMN).copy(), sections.reshape(blocks, kinds).copy())


def _header_crc32(head: NDArray[np.uint8]) -> int:
    without = head.copy()
    start = int(HEADER.fields["header_crc32"][1]) if HEADER.fields else 0
    without[start : start + 4] = 0
    return isal_zlib.crc32(without.data)


def columns_of(shard: Shard) -> NDArray[np.int64]:
    """Where columns start in the ids of a full block, and of the last one: int64[2, T]."""
    last = shard.header.rows_of(shard.header.num_blocks - 1) if shard.header.num_blocks else 0
    return np.stack([column_offsets(shard.id_bytes, rows)[:-1] for rows in (BLOCK_ROWS, last)])
