"""Writes one shard: all at once, under a temporary name until it is complete."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from dqrm_cpu.data.store.atomic import Piece, replace_file
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


def write_shard(
    directory: Path,
    name: str,
    schema: Schema,
    label: NDArray[np.uint8],
    dense: NDArray[np.float32],
    ids: NDArray[np.int32],
) -> ShardFile:
    """Rows with one id per column: label uint8[n], dense float32[n, num_dense] already log(x + 1), ids int32[T, n].

    `name` is the file's, such as train-00000.shard. An existing file of that name is replaced once this one is
    complete and on the disk.
    """
    path = directory / name
    _check_shape(path, "ids", ids, np.int32, (schema.num_tables, label.size))
    largest = ids.max(axis=1, initial=0) if label.size else np.zeros(schema.num_tables, np.int32)
    _check_ids(path, schema, ids)
    widths = np.select([largest < 1 << 8, largest < 1 << 16], [1, 2], 4).astype(np.int64)
    return _write(path, schema, _Rows(label, dense, ids, None, largest, widths))


def write_bags(
    directory: Path,
    name: str,
    schema: Schema,
    label: NDArray[np.uint8],
    dense: NDArray[np.float32],
    ids: NDArray[np.int32],
    offsets: NDArray[np.int64],
) -> ShardFile:
    """Rows with any number of ids per cell: ids int32[N] table by table, offsets int64[T * n + 1], as in a Batch."""
    path = directory / name
    _check_shape(path, "offsets", offsets, np.int64, (schema.num_tables * label.size + 1,))
    if offsets[0] != 0 or offsets[-1] != ids.size or (np.diff(offsets) < 0).any():
        raise DataError(f"{path}: offsets must rise from 0 to the {ids.size} ids; pass those that belong to the ids")
    _check_shape(path, "ids", ids, np.int32, (ids.size,))
    bounds = offsets[:: label.size] if label.size else np.zeros(schema.num_tables + 1, np.int64)
    tables = [ids[bounds[t] : bounds[t + 1]] for t in range(schema.num_tables)]
    largest = np.asarray([table.max(initial=0) for table in tables], np.int32)
    _check_ids(path, schema, tables)
    widths = np.full(schema.num_tables, 4, np.int64)
    return _write(path, schema, _Rows(label, dense, ids, offsets, largest, widths))


class _Rows(NamedTuple):
    label: NDArray[np.uint8]
    dense: NDArray[np.float32]
    ids: NDArray[np.int32]
    offsets: NDArray[np.int64] | None
    largest_id: NDArray[np.int32]
    id_bytes: NDArray[np.int64]


def _write(path: Path, schema: Schema, rows: _Rows) -> ShardFile:
    count = rows.label.size
    _check_shape(path, "label", rows.label, np.uint8, (count,))
    _check_shape(path, "dense", rows.dense, np.float32, (count, schema.num_dense))
    if count and rows.label.max() > 1:
        raise DataError(f"{path}: row {int(rows.label.argmax())} has label {rows.label.max()}; labels are 0 or 1")
    if not np.isfinite(rows.dense).all():
        row, column = np.argwhere(~np.isfinite(rows.dense))[0]
        raise DataError(f"{path}: row {row} has {rows.dense[row, column]} in {schema.dense[column]}; clean it first")
    header = _empty_header(schema, rows)
    body: list[Piece] = []
    place = int(header.fixed["header_bytes"][0])
    for block in range(header.num_blocks):
        first = block * BLOCK_ROWS
        pieces = _block(rows, slice(first, first + header.rows_of(block)), schema.num_tables)
        for kind, piece in enumerate(pieces):
            header.sections[block, kind] = (place, len(piece), isal_zlib.crc32(piece), 0)
            body += [piece, bytes(aligned(len(piece)) - len(piece))]
            place += aligned(len(piece))
    header.fixed["file_bytes"] = place
    head = sealed(header)
    replace_file(path, _joined(head, body))
    return ShardFile(path.name, count, place, int(header.fixed["header_crc32"][0]), int(header.fixed["clicks"][0]))


def sealed(header: Header) -> bytes:
    """The header's bytes, with its checksum set."""
    header.fixed["header_crc32"] = 0
    size = int(header.fixed["header_bytes"][0])

    def content() -> bytes:
        return (header.fixed.tobytes() + header.columns.tobytes() + header.sections.tobytes()).ljust(size, b"\0")

    header.fixed["header_crc32"] = isal_zlib.crc32(content())
    return content()


def _joined(head: bytes, body: list[Piece]) -> Iterator[Piece]:
    yield head
    yield from body


def _empty_header(schema: Schema, rows: _Rows) -> Header:
    count, bags = rows.label.size, rows.offsets is not None
    num_blocks = -(-count // BLOCK_ROWS)
    fixed = np.zeros(1, HEADER)
    for field, value in {
        "magic": MAGIC,
        "version": VERSION,
        "header_bytes": header_bytes(schema.num_tables, num_blocks, bags),
        "bags": bags,
        "rows": count,
        "clicks": np.count_nonzero(rows.label),
        "block_rows": BLOCK_ROWS,
        "num_blocks": num_blocks,
        "num_dense": schema.num_dense,
        "num_tables": schema.num_tables,
    }.items():
        fixed[field] = value
    columns = np.zeros(schema.num_tables, COLUMN)
    columns["largest_id"], columns["id_bytes"] = rows.largest_id, rows.id_bytes
    return Header(fixed, columns, np.zeros((num_blocks, 4 if bags else 3), SECTION))


def _block(rows: _Rows, part: slice, num_tables: int) -> list[memoryview]:
    rest = _columns(rows, part) if rows.offsets is None else _bags(rows, part, num_tables)
    arrays: list[NDArray[Any]] = [np.ascontiguousarray(rows.label[part]), np.ascontiguousarray(rows.dense[part]), *rest]
    return [array.data.cast("B") if array.size else memoryview(b"") for array in arrays]


def _columns(rows: _Rows, part: slice) -> list[NDArray[Any]]:
    """Each column in as few bytes as its largest id needs, which about halves the ids of Criteo."""
    count = part.stop - part.start
    starts = column_offsets(rows.id_bytes, count)
    packed = np.zeros(int(starts[-1]), np.uint8)
    for table, start in enumerate(starts[:-1]):
        width = int(rows.id_bytes[table])
        packed[start : start + width * count].view(_ID_TYPES[width])[:] = rows.ids[table, part]
    return [packed]


def _bags(rows: _Rows, part: slice, num_tables: int) -> list[NDArray[Any]]:
    """The ids of these rows, table by table, and offsets int32[T * rows + 1] that count from the block's first id."""
    assert rows.offsets is not None
    count = rows.label.size
    starts, ids = [np.zeros(1, np.int64)], []
    total = 0
    for table in range(num_tables):
        bounds = rows.offsets[table * count + part.start : table * count + part.stop + 1]
        ids.append(rows.ids[bounds[0] : bounds[-1]])
        starts.append(bounds[1:] - bounds[0] + total)
        total += int(bounds[-1] - bounds[0])
    if total >= 1 << 31:
        raise DataError(f"{part.stop - part.start} rows hold {total} ids; a block holds fewer than {1 << 31}")
    return [np.concatenate(ids), np.concatenate(starts).astype(np.int32)]


def _check_shape(
    path: Path, what: str, array: NDArray[np.generic], kind: type[np.generic], shape: tuple[int, ...]
) -> None:
    if array.dtype != kind or array.shape != shape:
        wanted = f"{np.dtype(kind)} {shape}"
        raise DataError(f"{path}: {what} is {array.dtype} {array.shape}, a shard of this schema takes {wanted}")


def _check_ids(path: Path, schema: Schema, columns: "NDArray[np.int32] | list[NDArray[np.int32]]") -> None:
    for name, column in zip(schema.categorical, columns, strict=True):
        if column.size and column.min() < 0:
            raise DataError(f"{path}: column {name} has id {column.min()}; ids are 0 or more")
