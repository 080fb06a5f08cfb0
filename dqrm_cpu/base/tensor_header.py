"""The header of a safetensors file, as packed models have it: written by us, read as if by somebody who means harm.

The format: the length of a JSON header in 8 bytes, the header padded with spaces, then the tensors' bytes. The header's
metadata holds a CRC-32 of every stretch of those bytes, and one of the header itself. Nothing here needs more than
NumPy, so that a model can be read where nothing else is installed.
"""

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np

LENGTH_BYTES = 8
MOST_HEADER_BYTES = 4 << 20
"""Checksums of 400 GB; a hostile header of that length becomes some 100 MB of Python objects."""

MOST_STRETCH_BYTES = 64 << 20

CHECKSUMS, HEADER_CHECKSUM, CHECKSUM_STRETCH = "checksums", "header_checksum", "checksum_stretch_bytes"
"""Keys of the metadata: CRC-32 of each stretch, 8 hexadecimal digits each; that of the header; bytes of a stretch."""

NO_CHECKSUM = "00000000"
"""Stands for the header's checksum while that is computed."""

DTYPES = {
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "U32": "uint32",
    "U64": "uint64",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
}

WITH_CHECKSUMS = ("2", "3", "4")
"""The formats whose files have checksums; what has another one is for whoever asks for the format to refuse."""

_MOST_DIMENSIONS = 8
_CRC_DIGITS = 8
_SHOWN = 200


class ForeignHeaderError(Exception):
    """A header is not one of a packed model; the text says how, as a clause."""


class DamagedHeaderError(Exception):
    """A header has not the checksum that it names."""


@dataclass(frozen=True)
class TensorEntry:
    """A tensor as the header describes it."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]

    @property
    def row_bytes(self) -> int:
        """Bytes of what one index of the first dimension stands for."""
        return math.prod(self.shape[1:]) * np.dtype(DTYPES[self.dtype]).itemsize


@dataclass(frozen=True)
class TensorHeader:
    """A header that has been checked: its tensors lie one behind another, and fill the data."""

    metadata: Mapping[str, str]
    entries: Mapping[str, TensorEntry]
    stretch_bytes: int = 0  # what one checksum stands for; 0: there are none
    checksums: tuple[int, ...] = ()  # CRC-32 of each stretch of the data


def read_header(text: bytes, data_bytes: int) -> TensorHeader:
    """Reads a header, behind whose text so many bytes of data follow; ForeignHeaderError, DamagedHeaderError."""
    try:
        document = json.loads(text)
        if b"\\ud" in text.lower():
            json.dumps(document, ensure_ascii=False).encode()  # half a pair is no text that could be shown
    except RecursionError:
        raise ForeignHeaderError("its header is nested too deeply") from None
    except ValueError as error:
        raise ForeignHeaderError(f"its header is no JSON ({str(error)[:_SHOWN]})") from error
    if not isinstance(document, dict):
        raise ForeignHeaderError("its header is no table of tensors")
    metadata = document.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ForeignHeaderError("its header has metadata that are no texts")
    entries = {name: _entry(name, about) for name, about in document.items()}
    _require_sound(entries, data_bytes)
    return TensorHeader(metadata, entries, *_checksums(metadata, text, data_bytes))


def header_checksum(text: bytes) -> str:
    """Returns the checksum of a header in which NO_CHECKSUM stands in its place."""
    return f"{zlib.crc32(text):08x}"


def with_header_checksum(text: bytes, before: str, after: str) -> bytes:
    """Replaces the header's checksum of itself; quotes within values are escaped, so no value looks like this."""
    return text.replace(f'"{HEADER_CHECKSUM}": "{before}"'.encode(), f'"{HEADER_CHECKSUM}": "{after}"'.encode(), 1)


def _entry(name: str, about: Any) -> TensorEntry:
    if isinstance(about, dict):
        dtype, shape, place = (about.get(key) for key in ("dtype", "shape", "data_offsets"))
        if isinstance(dtype, str) and _are_counts(shape) and _are_counts(place) and len(place) == 2:
            return TensorEntry(dtype, tuple(shape), (place[0], place[1]))
    raise ForeignHeaderError(f"its header lacks or mistakes a field of {name[:80]}")


def _are_counts(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 63 for value in values)


def _require_sound(entries: Mapping[str, TensorEntry], data_bytes: int) -> None:
    """Requires tensors without overlap or hole, each as large as its shape, up to the file's end."""
    at = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        begin, end = entry.data_offsets
        if entry.dtype not in DTYPES:
            raise ForeignHeaderError(f"its tensor {name[:80]} has the type {entry.dtype[:20]}")
        if len(entry.shape) > _MOST_DIMENSIONS or any(not 0 <= count < 1 << 48 for count in entry.shape):
            raise ForeignHeaderError(f"its tensor {name[:80]} has an impossible shape")
        if begin != at or end - begin != math.prod(entry.shape) * np.dtype(DTYPES[entry.dtype]).itemsize:
            raise ForeignHeaderError(f"its tensor {name[:80]} does not lie where and as large as its shape says")
        at = end
    if at != data_bytes:
        raise ForeignHeaderError(f"its tensors have {at:,} bytes, and {data_bytes:,} are there")


def _checksums(metadata: Mapping[str, str], header: bytes, data_bytes: int) -> tuple[int, tuple[int, ...]]:
    """Returns the bytes of a stretch and the checksum of each; 0 and none of a file that was written without them."""
    version = metadata.get("format", WITH_CHECKSUMS[0])
    found = metadata.get(HEADER_CHECKSUM, "")
    if version == "1" or (not found and version not in WITH_CHECKSUMS):
        return 0, ()
    if header_checksum(with_header_checksum(header, found, NO_CHECKSUM)) != found:
        raise DamagedHeaderError
    try:
        stretch, text = int(metadata[CHECKSUM_STRETCH]), metadata[CHECKSUMS]
        places = range(0, len(text), _CRC_DIGITS)
        checksums = tuple(int(text[at : at + _CRC_DIGITS], 16) for at in places)
    except (KeyError, ValueError):
        raise ForeignHeaderError("its checksums cannot be read") from None
    if not 0 < stretch <= MOST_STRETCH_BYTES or len(checksums) != -(-data_bytes // stretch):
        raise ForeignHeaderError("its checksums do not belong to its data")
    return stretch, checksums
