"""Rows that have been read, on their way to shards: numbered files that are complete under their name or not there.

One file is one step of the way: its rows as records by bin, the categories that first appeared in it, what was counted,
and the place in the sources behind it. The files alone say how far the preparation came; a damaged one ends it.

File: uint32 with the length of the header, uint32 with its checksum, the header as JSON, int32[NUM_BINS + 1] with the
bounds of the bins, records uint32[rows, W], new keys column by column.
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
from dqrm_cpu.base.files import open_regular
from dqrm_cpu.data.prepare.blocks import Place
from dqrm_cpu.data.prepare.order import NUM_BINS
from dqrm_cpu.errors import DataError

_SUFFIX = ".rows"
_LENGTH_BYTES = 8
_PIECE_BYTES = 8 << 20


@dataclass(frozen=True)
class Counts:
    """What was counted in some rows; columns are dense, then categorical."""

    missing: tuple[int, ...]
    clamped: tuple[int, ...]  # dense only
    unseen: tuple[int, ...]  # categorical only
    dense_sum: tuple[float, ...]
    dense_min: tuple[float, ...]
    dense_max: tuple[float, ...]


@dataclass(frozen=True)
class Offender:
    """A line that was no row."""

    line: int  # of its file, from 1
    field: int  # from 1
    mistake: int
    text: str  # how the line, or what is wrong in it, begins


@dataclass(frozen=True)
class StepHeader:
    """One file of the spool without its rows."""

    first_row: int
    rows: int
    first_line: int  # in the source, from 0
    lines: int
    bad_lines: int
    offenders: tuple[Offender, ...]  # the first ones
    quarantined: int  # bytes of the quarantine file behind this step
    after: Place
    ends_source: bool
    counts: Counts
    new_keys: tuple[int, ...]  # per categorical column
    payload_crc32: int = 0
    width: int = 0  # words of a record


@dataclass(frozen=True)
class Step:
    """One file of the spool."""

    path: Path
    header: StepHeader
    records_at: int  # offset in the file
    bounds: NDArray[np.int32]  # [NUM_BINS + 1] of the records


def step_path(folder: Path, number: int) -> Path:
    """The file of a step."""
    return folder / f"{number:06d}{_SUFFIX}"


def write_step(
    path: Path,
    header: StepHeader,
    bounds: NDArray[np.int64],
    records: NDArray[np.uint32],
    new_keys: list[NDArray[Any]],
) -> Step:
    """Writes under a temporary name, then renames: a kill leaves all or nothing.

    There is no fsync: after a loss of power, the checksum says which files are whole.
    """
    narrow = bounds.astype(np.int32)
    pieces = [array.data.cast("B") for array in (narrow, records, *new_keys) if array.size]
    crc32 = 0
    for piece in pieces:
        crc32 = isal_zlib.crc32(piece, crc32)
    header = replace(header, payload_crc32=crc32, width=int(records.shape[1]))
    head = json.dumps(asdict(header)).encode()
    head += b" " * (-(len(head) + _LENGTH_BYTES) % 64)
    temporary = path.with_suffix(".part")
    try:
        with temporary.open("wb", buffering=0) as file:
            lead = len(head) | isal_zlib.crc32(head) << 32
            for part in (lead.to_bytes(_LENGTH_BYTES, "little"), head, *pieces):
                _write_all(file, part)
        temporary.replace(path)
    except OSError as error:
        raise DataError(
            f"{path} cannot be written ({error.strerror}); make room and run the same command to go on"
        ) from error
    return Step(path, header, _LENGTH_BYTES + len(head) + narrow.nbytes, narrow)


def _write_all(file: Any, piece: Any) -> None:
    view = memoryview(piece)
    done = 0
    while done < len(view):
        done += int(file.write(view[done:]))


def read_step(path: Path) -> Step:
    """A step without its rows; UnreadableError if it is damaged."""
    with open_regular(path) as file:
        lead = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        length, crc32 = lead & 0xFFFFFFFF, lead >> 32
        if not 0 < length < 1 << 28:
            raise UnreadableError("has a damaged header")
        head = file.read(length)
        bounds = np.frombuffer(_whole(file.read(4 * (NUM_BINS + 1)), 4 * (NUM_BINS + 1)), np.int32)
    if crc32 not in (0, isal_zlib.crc32(head)):  # 0: of a version that took none
        raise UnreadableError("has a damaged header")
    header = decoded(parse_json(head), StepHeader)
    if bounds[0] != 0 or bounds[-1] != header.rows or (np.diff(bounds) < 0).any():
        raise UnreadableError("has rows outside of its bins")
    return Step(path, header, _LENGTH_BYTES + length + bounds.nbytes, bounds)


def _whole(content: bytes, size: int) -> bytes:
    if len(content) != size:
        raise UnreadableError("is cut short")
    return content


def read_new_keys(step: Step, key_type: np.dtype[Any]) -> list[NDArray[Any]]:
    """The categories that first appeared in a step, column by column; UnreadableError if it is damaged."""
    header = step.header
    if min((header.rows, header.width, *header.new_keys)) < 0:
        raise UnreadableError("has a damaged header")
    left = header.rows * header.width * 4
    crc32 = isal_zlib.crc32(step.bounds.tobytes())
    wanted = sum(header.new_keys) * key_type.itemsize
    with open_regular(step.path) as file:
        file.seek(step.records_at)
        while left and (piece := file.read(min(left, _PIECE_BYTES))):
            crc32 = isal_zlib.crc32(piece, crc32)
            left -= len(piece)
        tail = file.read(wanted + 1)
    crc32 = isal_zlib.crc32(tail, crc32)
    if left or crc32 != header.payload_crc32 or len(tail) != wanted:
        raise UnreadableError("has damaged rows")
    return np.split(np.frombuffer(tail, key_type), np.cumsum(header.new_keys)[:-1])


def read_records(step: Step, low: int, records: NDArray[np.uint32]) -> None:
    """Records from number `low` on, as many as fit."""
    if records.size == 0:
        return
    view = records.data.cast("B")
    offset = step.records_at + low * records.shape[1] * 4
    descriptor = os.open(step.path, os.O_RDONLY)
    try:
        done = 0
        while done < len(view):
            taken = os.preadv(descriptor, [view[done:]], offset + done)
            if taken == 0:
                raise DataError(f"{step.path} is shorter than it was; begin anew with --restart")
            done += taken
    finally:
        os.close(descriptor)
