"""A shard as a memory map: what its header says, and blocks that are checked before anything reads them."""

import mmap
import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from dqrm_cpu.base.files import open_regular
from dqrm_cpu.data.store.layout import BLOCK_ROWS, HEADER, MEND, DamagedShardError, Section, column_offsets, read_header
from dqrm_cpu.data.store.manifest import PART_NAMES, Manifest, ShardFile
from dqrm_cpu.data.store.schema import Schema
from dqrm_cpu.errors import DataError


class MappedShard:
    """A mapped file. Opening it checks the header; each block is to be checked by `check_block` before it is used."""

    def __init__(self, path: Path, expected: ShardFile) -> None:
        self.path = path
        self._map = _map(path)
        self._bytes = np.frombuffer(self._map, np.uint8)
        self.header = read_header(path, self._bytes, expected)

    @property
    def id_bytes(self) -> NDArray[np.int64]:
        """The bytes of an id in each column, int64[T]."""
        return self.header.columns["id_bytes"].astype(np.int64)

    def address(self, block: int, section: Section) -> int:
        """Returns where a section lies in memory, as long as this object lives."""
        return int(self._bytes.ctypes.data) + int(self.header.sections[block, section]["offset"])

    def check_block(self, block: int) -> None:
        """Raises DamagedShardError for the section that does not fit its checksum, or holds what it must not."""
        for section in self._sections():
            self._checked(block, section)

    def damages(self, block: int) -> list[str]:
        """Returns what is wrong with each of a block's sections that is not whole."""
        texts = []
        for section in self._sections():
            try:
                self._checked(block, section)
            except DamagedShardError as error:
                texts.append(str(error))
        return texts

    def block_bytes(self, block: int) -> int:
        """Returns the bytes of a block's sections."""
        return int(self.header.sections[block]["bytes"].sum())

    def labels(self, block: int) -> NDArray[np.uint8]:
        """Checks the labels of a block and returns them."""
        return self._checked(block, Section.LABEL)

    def dense(self, block: int) -> NDArray[np.float32]:
        """Returns the dense values of a block, row by row, unchecked."""
        return self.content(block, Section.DENSE).view(np.float32)

    def require_whole(self) -> None:
        """Raises DamagedShardError for a file that was cut short after it was mapped.

        What it lost reads as zeros up to the end of a page; only behind that it faults.
        """
        if self._map.size() != self._bytes.size:
            raise DamagedShardError(f"{self.path} was cut short while it was in use; {MEND}")

    def require_schema(self, schema: Schema, table_rows: tuple[int, ...], bags: bool) -> None:
        """Raises DamagedShardError for other columns, or an id beyond its table: kernels follow ids without looking."""
        columns = self.header.columns.size, int(self.header.fixed["num_dense"][0]), self.header.bags
        if columns != (schema.num_tables, schema.num_dense, bags):
            raise DamagedShardError(f"{self.path} has not the columns of its manifest or of its neighbours; {MEND}")
        largest = self.header.columns["largest_id"]
        for name, most, rows in zip(schema.categorical, largest.tolist(), table_rows, strict=True):
            if most >= rows:
                raise DamagedShardError(
                    f"{self.path}: column {name} has id {most}, and its table {rows} rows; prepare the data set again"
                )

    def _sections(self) -> list[Section]:
        return list(Section)[: self.header.sections.shape[1]]

    def content(self, block: int, section: Section) -> NDArray[np.uint8]:
        """Returns the bytes of a section, unchecked."""
        where = self.header.sections[block, section]
        start, size = int(where["offset"]), int(where["bytes"])
        return self._bytes[start : start + size]

    def _checked(self, block: int, section: Section) -> NDArray[np.uint8]:
        content = self.content(block, section)
        if isal_zlib.crc32(content.data) != int(self.header.sections[block, section]["crc32"]):
            raise self._damaged(block, section, "")
        mistake = self._mistake(block, section, content)
        if mistake:
            raise self._damaged(block, section, f": {mistake}")
        return content

    def _mistake(self, block: int, section: Section, content: NDArray[np.uint8]) -> str:
        """Describes content that fits its checksum and still must not be, for a message; empty where it is well."""
        if section == Section.LABEL and int(content.max()) > 1:
            return f"label {content.max()}"
        if section == Section.IDS and not self.header.bags:
            return self._mistake_of_ids(self.header.rows_of(block), content)
        if section == Section.OFFSETS:
            return self._mistake_of_bags(self.header.rows_of(block), content.view(np.int32), block)
        return ""

    def _mistake_of_ids(self, rows: int, content: NDArray[np.uint8]) -> str:
        starts = column_offsets(self.id_bytes, rows).tolist()
        columns = self.header.columns.tolist()
        for number, (start, (largest, width)) in enumerate(zip(starts, columns, strict=False)):
            largest_id = _largest(content[start : start + width * rows], width)
            if largest_id > largest:
                return f"column {number} has id {largest_id}, its header {largest} at most"
        return ""

    def _mistake_of_bags(self, rows: int, offsets: NDArray[np.int32], block: int) -> str:
        ids = self.content(block, Section.IDS).view(np.uint32)
        if offsets[0] != 0 or offsets[-1] != ids.size or (offsets[1:] < offsets[:-1]).any():
            return f"bags do not follow one another from 0 to the {ids.size:,} ids"
        bounds = offsets[::rows].tolist()
        for number, largest in enumerate(self.header.columns["largest_id"].tolist()):
            largest_id = int(ids[bounds[number] : bounds[number + 1]].max(initial=0))
            if largest_id > largest:
                return f"column {number} has id {largest_id}, its header {largest} at most"
        return ""

    def _damaged(self, block: int, section: Section, what: str) -> DamagedShardError:
        first = block * BLOCK_ROWS
        rows = f"rows {first:,} to {first + self.header.rows_of(block) - 1:,}"
        return DamagedShardError(
            f"{self.path}: the {section.name.lower()} section of block {block} ({rows}) is damaged{what}; {MEND}"
        )


def require_size(path: Path, expected: ShardFile) -> None:
    """Raises DamagedShardError where a file is missing or has not the size that its manifest says."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise DamagedShardError(f"{path} is missing, its manifest names it; {MEND}") from None
    if not stat.S_ISREG(status.st_mode):
        raise DamagedShardError(f"{path} is no regular file; {MEND}")
    if status.st_size != expected.bytes:
        raise DamagedShardError(f"{path} has {status.st_size:,} bytes, its manifest says {expected.bytes:,}; {MEND}")


def _map(path: Path) -> mmap.mmap:
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size < HEADER.itemsize:
                raise DamagedShardError(f"{path} has only {size} bytes, too few for a header; {MEND}")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise DamagedShardError(f"{path} is missing, its manifest names it; {MEND}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be mapped ({error.strerror}); may you read it?") from error


def _largest(ids: NDArray[np.uint8], width: int) -> int:
    """Returns the largest of ids of `width` bytes, read as unsigned: a negative one is a very large one."""
    if width == 1:
        return int(ids.max())
    return int(ids.view(np.uint16).max() if width == 2 else ids.view(np.uint32).max())


def columns_of(shard: MappedShard) -> NDArray[np.int64]:
    """Returns where columns start in the ids of a full block, and of the last one: int64[2, T]."""
    last = shard.header.rows_of(shard.header.num_blocks - 1) if shard.header.num_blocks else 0
    return np.stack([column_offsets(shard.id_bytes, rows)[:-1] for rows in (BLOCK_ROWS, last)])


def verify(directory: Path, manifest: Manifest, progress: Callable[[int], None]) -> list[str]:
    """Reads every byte of a data set and returns what is damaged, a line for each header or section.

    `progress` takes how many bytes were read since the last time.
    """
    damages = []
    for part in PART_NAMES:
        for file in manifest.parts[part]:
            damages += _verify_shard(directory, manifest, file, progress)
    return damages


def _verify_shard(directory: Path, manifest: Manifest, file: ShardFile, progress: Callable[[int], None]) -> list[str]:
    try:
        shard = MappedShard(directory / file.name, file)
        shard.require_schema(manifest.schema, manifest.table_rows, shard.header.bags)
    except DataError as error:
        progress(file.bytes)
        return [str(error)]
    all_damages, read, clicks = [], 0, 0
    for block in range(shard.header.num_blocks):
        damages = shard.damages(block)
        all_damages += damages
        if not damages:
            all_damages += _infinite_values(shard, block, manifest.schema)
            clicks += int(shard.labels(block).sum())
        read += shard.block_bytes(block)
        progress(shard.block_bytes(block))
    progress(file.bytes - read)
    if not all_damages and clicks != file.clicks:
        all_damages.append(f"{shard.path} has {clicks:,} clicks, its manifest says {file.clicks:,}")
    return all_damages


def _infinite_values(shard: MappedShard, block: int, schema: Schema) -> list[str]:
    """Describes the first dense value of a block that is no finite number."""
    dense = shard.dense(block).reshape(-1, schema.num_dense)
    for row, column in np.argwhere(~np.isfinite(dense))[:1].tolist():
        what = f"{dense[row, column]} in {schema.dense[column]} of row {block * BLOCK_ROWS + row:,}"
        return [f"{shard.path}: the dense section of block {block} has {what}"]
    return []
