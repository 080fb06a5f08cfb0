"""Writes one shard block after block, under a temporary name until it is complete."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from dqrm_cpu.base.files import replacing
from dqrm_cpu.data.batch import Batch
from dqrm_cpu.data.store.layout import (
    BLOCK_ROWS,
    COLUMN,
    HEADER,
    MAGIC,
    SECTION,
    VERSION,
    Header,
    aligned,
    column_offsets,
    header_bytes,
)
from dqrm_cpu.data.store.manifest import ShardFile
from dqrm_cpu.data.store.schema import Schema
from dqrm_cpu.errors import DataError

SHARD_ROWS = 128 * BLOCK_ROWS
"""A good size of a shard: 1,048,576 rows, about 100 MB with Criteo's columns. It is a multiple of the block."""

_ID_TYPES = {1: np.uint8, 2: np.uint16, 4: np.int32}

_Sections: TypeAlias = tuple[NDArray[Any], ...]


class RowBlock(NamedTuple):
    """A block of neighbouring rows with one id per column."""

    label: NDArray[np.uint8]  # [n]
    dense: NDArray[np.float32]  # [n, num_dense], already log(x + 1)
    ids: NDArray[np.int32]  # [T, n]


class BagBlock(NamedTuple):
    """A block of neighbouring rows with any number of ids per cell, as in a Batch."""

    label: NDArray[np.uint8]  # [n]
    dense: NDArray[np.float32]  # [n, num_dense], already log(x + 1)
    ids: NDArray[np.int32]  # [N], table by table
    offsets: NDArray[np.int64]  # [T * n + 1]


def block_of(batch: Batch) -> RowBlock | BagBlock:
    """Returns stored rows that were read as a batch as they are written; weights stand behind the numbers."""
    label, dense, ids = batch.label.numpy().astype(np.uint8), batch.dense.numpy(), batch.ids.numpy()
    if batch.weight is not None:
        dense = np.concatenate([dense, batch.weight.numpy()[:, None]], axis=1)
    return RowBlock(label, dense, ids) if batch.offsets is None else BagBlock(label, dense, ids, batch.offsets.numpy())


def write_shard(
    directory: Path,
    name: str,
    schema: Schema,
    label: NDArray[np.uint8],
    dense: NDArray[np.float32],
    ids: NDArray[np.int32],
) -> ShardFile:
    """Writes rows with one id per column: label uint8[n], dense float32[n, num_dense] as log(x + 1), ids int32[T, n].

    `name` is the file's, such as train-00000.shard. An existing file of that name is replaced once this one is
    complete and on the disk.
    """
    path, count = directory / name, label.size
    _check_shape(path, schema, RowBlock(label, dense, ids))
    largest = ids.max(axis=1, initial=0) if count else np.zeros(schema.num_tables, np.int32)
    parts = (slice(first, first + BLOCK_ROWS) for first in range(0, count, BLOCK_ROWS))
    blocks = (RowBlock(label[part], dense[part], ids[:, part]) for part in parts)
    return write_blocks(path, schema, count, largest, blocks)


def write_blocks(
    path: Path,
    schema: Schema,
    num_rows: int,
    largest_id: NDArray[np.int32],
    blocks: Iterable[RowBlock | BagBlock],
    *,
    bags: bool = False,
) -> ShardFile:
    """Writes rows block after block: those of all are bags, or of none.

    Each block has BLOCK_ROWS rows but the last one, and its arrays are free afterwards. largest_id int32[T] decides how
    many bytes an id of each column takes, where a cell has one.
    """
    narrow = np.select([largest_id < 1 << 8, largest_id < 1 << 16], [1, 2], 4).astype(np.int64)
    widths = np.full(schema.num_tables, 4, np.int64) if bags else narrow
    header = _empty_header(schema, num_rows, largest_id, widths, bags=bags)
    packed = _PackedIds(widths)

    def sections() -> Iterator[_Sections]:
        first = 0
        for block in blocks:
            if isinstance(block, BagBlock):
                _check_bags(path, schema, block, first)
                yield block.label, block.dense, block.ids, block.offsets.astype(np.int32)
            else:
                _check_rows(path, schema, block, first)
                yield block.label, block.dense, packed.fill(block.ids, largest_id)
            first += block.label.size

    return _write(path, header, sections())


def write_bags(
    directory: Path,
    name: str,
    schema: Schema,
    label: NDArray[np.uint8],
    dense: NDArray[np.float32],
    ids: NDArray[np.int32],
    offsets: NDArray[np.int64],
) -> ShardFile:
    """Writes rows with any number of ids per cell: ids int32[N] by table, offsets int64[T * n + 1], as in a Batch."""
    path, count = directory / name, label.size
    tables = _check_bags(path, schema, BagBlock(label, dense, ids, offsets), 0)
    largest = np.asarray([table.max(initial=0) for table in tables], np.int32)
    parts = (slice(first, min(first + BLOCK_ROWS, count)) for first in range(0, count, BLOCK_ROWS))
    blocks = (BagBlock(label[part], dense[part], *_bags(ids, offsets, count, part)) for part in parts)
    return write_blocks(path, schema, count, largest, blocks, bags=True)


def _write(path: Path, header: Header, blocks: Iterable[_Sections]) -> ShardFile:
    """Writes blocks, then the header, which comes first in the file and is known last."""
    place, clicks, count = int(header.fixed["header_bytes"][0]), 0, 0
    with replacing(path, DataError) as file:
        file.seek(place)
        for number, sections in enumerate(blocks):
            count += sections[0].size
            clicks += int(np.count_nonzero(sections[0]))
            for kind, array in enumerate(sections):
                piece = np.ascontiguousarray(array).data.cast("B") if array.size else memoryview(b"")
                header.sections[number, kind] = (place, len(piece), isal_zlib.crc32(piece), 0)
                file.write(piece)
                file.write(bytes(aligned(len(piece)) - len(piece)))
                place += aligned(len(piece))
        assert count == header.rows
        header.fixed["file_bytes"], header.fixed["clicks"] = place, clicks
        file.seek(0)
        file.write(sealed(header))
    return ShardFile(path.name, count, place, int(header.fixed["header_crc32"][0]), clicks)


def sealed(header: Header) -> bytes:
    """Returns the header's bytes, with its checksum set."""
    header.fixed["header_crc32"] = 0
    size = int(header.fixed["header_bytes"][0])

    def content() -> bytes:
        return (header.fixed.tobytes() + header.columns.tobytes() + header.sections.tobytes()).ljust(size, b"\0")

    header.fixed["header_crc32"] = isal_zlib.crc32(content())
    return content()


def _empty_header(
    schema: Schema, count: int, largest_id: NDArray[np.int32], id_bytes: NDArray[np.int64], *, bags: bool
) -> Header:
    num_blocks = -(-count // BLOCK_ROWS)
    fixed = np.zeros(1, HEADER)
    for field, value in {
        "magic": MAGIC,
        "version": VERSION,
        "header_bytes": header_bytes(schema.num_tables, num_blocks, bags),
        "bags": bags,
        "rows": count,
        "block_rows": BLOCK_ROWS,
        "num_blocks": num_blocks,
        "num_dense": schema.num_dense,
        "num_tables": schema.num_tables,
    }.items():
        fixed[field] = value
    columns = np.zeros(schema.num_tables, COLUMN)
    columns["largest_id"], columns["id_bytes"] = largest_id, id_bytes
    return Header(fixed, columns, np.zeros((num_blocks, 4 if bags else 3), SECTION))


class _PackedIds:
    """Each column in as few bytes as its largest id needs, which about halves the ids of Criteo."""

    def __init__(self, id_bytes: NDArray[np.int64]) -> None:
        self._id_bytes = id_bytes
        self._memory = np.zeros(int(column_offsets(id_bytes, BLOCK_ROWS)[-1]), np.uint8)

    def fill(self, ids: NDArray[np.int32], largest_id: NDArray[np.int32]) -> NDArray[np.uint8]:
        """Returns the section of a block, in memory that the next one takes again."""
        count = ids.shape[1]
        assert (ids.max(axis=1, initial=0) <= largest_id).all()
        starts = column_offsets(self._id_bytes, count)
        packed = self._memory[: int(starts[-1])]
        if count < BLOCK_ROWS:
            packed[:] = 0  # the gaps lie elsewhere
        for column, start, width in zip(ids, starts.tolist(), self._id_bytes.tolist(), strict=False):
            packed[start : start + width * count].view(_ID_TYPES[width])[:] = column
        return packed


def _bags(
    ids: NDArray[np.int32], offsets: NDArray[np.int64], count: int, part: slice
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Returns the ids of these rows by table, and offsets int64[T * rows + 1] that count from the block's first id."""
    starts, tables = [np.zeros(1, np.int64)], []
    total = 0
    for first in range(0, offsets.size - 1, count):
        bounds = offsets[first + part.start : first + part.stop + 1]
        tables.append(ids[bounds[0] : bounds[-1]])
        starts.append(bounds[1:] - bounds[0] + total)
        total += int(bounds[-1] - bounds[0])
    return np.concatenate(tables), np.concatenate(starts)


def _check_shape(path: Path, schema: Schema, rows: RowBlock) -> None:
    count = rows.label.size
    _require(path, "ids", rows.ids, np.int32, (schema.num_tables, count))
    _require(path, "label", rows.label, np.uint8, (count,))
    _require(path, "dense", rows.dense, np.float32, (count, schema.num_dense))


def _check_rows(path: Path, schema: Schema, rows: RowBlock, first: int) -> None:
    _check_shape(path, schema, rows)
    _check_ids(path, schema, rows.ids)
    _check_values(path, schema, rows.label, rows.dense, first)


def _check_bags(path: Path, schema: Schema, rows: BagBlock, first: int) -> list[NDArray[np.int32]]:
    """Raises DataError where a shard cannot hold the rows; returns the ids of each table."""
    count, (label, dense, ids, offsets) = rows.label.size, rows
    _require(path, "offsets", offsets, np.int64, (schema.num_tables * count + 1,))
    if offsets[0] != 0 or offsets[-1] != ids.size or (np.diff(offsets) < 0).any():
        raise DataError(f"{path}: offsets must rise from 0 to the {ids.size} ids; pass those that belong to the ids")
    if count <= BLOCK_ROWS and ids.size >= 1 << 31:
        raise DataError(f"{path}: {count} rows hold {ids.size} ids; a block holds fewer than {1 << 31}")
    _require(path, "ids", ids, np.int32, (ids.size,))
    _require(path, "label", label, np.uint8, (count,))
    _require(path, "dense", dense, np.float32, (count, schema.num_dense))
    bounds = offsets[::count] if count else np.zeros(schema.num_tables + 1, np.int64)
    tables = [ids[bounds[t] : bounds[t + 1]] for t in range(schema.num_tables)]
    _check_ids(path, schema, tables)
    _check_values(path, schema, label, dense, first)
    return tables


def _check_values(path: Path, schema: Schema, label: NDArray[np.uint8], dense: NDArray[np.float32], first: int) -> None:
    if label.size and label.max() > 1:
        raise DataError(f"{path}: row {first + int(label.argmax())} has label {label.max()}; labels are 0 or 1")
    if not np.isfinite(dense).all():
        row, column = np.argwhere(~np.isfinite(dense))[0]
        what = f"{dense[row, column]} in {schema.dense[column]}"
        raise DataError(f"{path}: row {first + int(row)} has {what}; clean it first")


def _require(path: Path, what: str, array: NDArray[np.generic], kind: type[np.generic], shape: tuple[int, ...]) -> None:
    if array.dtype != kind or array.shape != shape:
        wanted = f"{np.dtype(kind)} {shape}"
        raise DataError(f"{path}: {what} is {array.dtype} {array.shape}, a shard of this schema takes {wanted}")


def _check_ids(path: Path, schema: Schema, columns: "NDArray[np.int32] | list[NDArray[np.int32]]") -> None:
    for name, column in zip(schema.categorical, columns, strict=True):
        if column.size and column.min() < 0:
            raise DataError(f"{path}: column {name} has id {column.min()}; ids are 0 or more")
