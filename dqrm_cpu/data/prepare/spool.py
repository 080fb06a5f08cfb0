"""The spool, rows that have been read and not yet sorted into shards: numbered files, complete or not there.

A file holds one block: its rows as records by bin, the categories that first appeared in it, what was counted, and the
position in the sources behind it. The files alone say how far the preparation came; a damaged one ends it.

File: uint32 with the length of the header, uint32 with its checksum, the header as JSON, int32[NUM_BINS + 1] with the
bounds of the bins, records uint32[rows, W], the values of their bags, new keys column by column.
"""

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from dqrm_cpu.base.decode import UnreadableError, decoded, parse_json
from dqrm_cpu.base.files import open_regular, replacing
from dqrm_cpu.data.prepare.bad_rows import Offender
from dqrm_cpu.data.prepare.records import NUM_BINS
from dqrm_cpu.data.prepare.sources.raw_file import SourcePosition
from dqrm_cpu.errors import DataError

_SUFFIX = ".rows"
_LENGTH_BYTES = 8
_PIECE_BYTES = 8 << 20


@dataclass(frozen=True)
class Counts:
    """Counts and sums of some rows; columns are dense, then categorical."""

    missing: tuple[int, ...]
    clamped: tuple[int, ...]  # dense only
    unseen: tuple[int, ...]  # categorical only
    cut: tuple[int, ...] = ()  # bags only: values beyond the limit of a cell
    dense_sum: tuple[float, ...] = ()
    dense_min: tuple[float, ...] = ()
    dense_max: tuple[float, ...] = ()


@dataclass(frozen=True)
class SpoolHeader:
    """The header of one file of the spool, about its rows."""

    first_row: int
    rows: int
    first_line: int  # in the source, from 0
    lines: int
    bad_lines: int
    offenders: tuple[Offender, ...]  # the first ones
    quarantined: int  # bytes of the quarantine file behind these rows
    after: SourcePosition
    ends_source: bool
    counts: Counts
    new_keys: tuple[int, ...]  # per categorical column
    payload_crc32: int = 0
    width: int = 0  # words of a record
    values: int = 0  # words of the values of bags, behind the records


@dataclass(frozen=True)
class SpoolFile:
    """One file of the spool."""

    path: Path
    header: SpoolHeader
    records_at: int  # offset in the file
    bounds: NDArray[np.int32]  # [NUM_BINS + 1] of the records


def spool_path(folder: Path, number: int) -> Path:
    """Returns the path of a file of the spool."""
    return folder / f"{number:06d}{_SUFFIX}"


def write_spool_file(
    path: Path,
    header: SpoolHeader,
    bounds: NDArray[np.int64],
    records: NDArray[np.uint32],
    values: NDArray[np.uint32],
    new_keys: list[NDArray[Any]],
) -> SpoolFile:
    """Writes under a temporary name, then renames: a kill leaves all or nothing.

    There is no fsync: after a loss of power, the checksum says which files are whole.
    """
    narrow = bounds.astype(np.int32)
    pieces = [array.data.cast("B") for array in (narrow, records, values, *new_keys) if array.size]
    crc32 = 0
    for piece in pieces:
        crc32 = isal_zlib.crc32(piece, crc32)
    header = replace(header, payload_crc32=crc32, width=int(records.shape[1]), values=values.size)
    head = json.dumps(asdict(header)).encode()
    head += b" " * (-(len(head) + _LENGTH_BYTES) % 64)
    advice = "make room and run the same command to go on"
    with replacing(path, DataError, force_to_disk=False, advice=advice) as file:
        lead = len(head) | isal_zlib.crc32(head) << 32
        file.write(lead.to_bytes(_LENGTH_BYTES, "little") + head)
        for piece in pieces:
            file.write(piece)
    return SpoolFile(path, header, _LENGTH_BYTES + len(head) + narrow.nbytes, narrow)


def read_spool_file(path: Path) -> SpoolFile:
    """Reads a file without its rows; UnreadableError if it is damaged."""
    with open_regular(path) as file:
        lead = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        length, crc32 = lead & 0xFFFFFFFF, lead >> 32
        if not 0 < length < 1 << 28:
            raise UnreadableError("has a damaged header")
        head = file.read(length)
        bounds = np.frombuffer(_whole(file.read(4 * (NUM_BINS + 1)), 4 * (NUM_BINS + 1)), np.int32)
    if crc32 not in (0, isal_zlib.crc32(head)):  # 0: of a version that took none
        raise UnreadableError("has a damaged header")
    header = decoded(parse_json(head), SpoolHeader)
    if bounds[0] != 0 or bounds[-1] != header.rows or (np.diff(bounds) < 0).any():
        raise UnreadableError("has rows outside of its bins")
    return SpoolFile(path, header, _LENGTH_BYTES + length + bounds.nbytes, bounds)


def _whole(content: bytes, size: int) -> bytes:
    if len(content) != size:
        raise UnreadableError("is cut short")
    return content


def read_new_keys(spooled: SpoolFile, key_type: np.dtype[Any]) -> list[NDArray[Any]]:
    """Reads the categories that first appeared in a file, column by column; UnreadableError if any of it is damaged."""
    header = spooled.header
    if min((header.rows, header.width, header.values, *header.new_keys)) < 0:
        raise UnreadableError("has a damaged header")
    left = (header.rows * header.width + header.values) * 4
    crc32 = isal_zlib.crc32(spooled.bounds.tobytes())
    wanted = sum(header.new_keys) * key_type.itemsize
    with open_regular(spooled.path) as file:
        file.seek(spooled.records_at)
        while left and (piece := file.read(min(left, _PIECE_BYTES))):
            crc32 = isal_zlib.crc32(piece, crc32)
            left -= len(piece)
        tail = file.read(wanted + 1)
    crc32 = isal_zlib.crc32(tail, crc32)
    if left or crc32 != header.payload_crc32 or len(tail) != wanted:
        raise UnreadableError("has damaged rows")
    return np.split(np.frombuffer(tail, key_type), np.cumsum(header.new_keys)[:-1])


def read_records(spooled: SpoolFile, low: int, records: NDArray[np.uint32]) -> None:
    """Reads records from number `low` on, as many as fit."""
    _read_words(spooled, low * spooled.header.width, records)


def read_values(spooled: SpoolFile, first: int, end: int) -> NDArray[np.uint32]:
    """Reads words first to end - 1 of the values of bags."""
    values = np.empty(end - first, np.uint32)
    _read_words(spooled, spooled.header.rows * spooled.header.width + first, values)
    return values


def _read_words(spooled: SpoolFile, first: int, words: NDArray[np.uint32]) -> None:
    if words.size == 0:
        return
    view = words.data.cast("B")
    offset = spooled.records_at + first * 4
    descriptor = os.open(spooled.path, os.O_RDONLY)
    try:
        done = 0
        while done < len(view):
            taken = os.preadv(descriptor, [view[done:]], offset + done)
            if taken == 0:
                raise DataError(f"{spooled.path} is shorter than it was; begin anew with --restart")
            done += taken
    finally:
        os.close(descriptor)
