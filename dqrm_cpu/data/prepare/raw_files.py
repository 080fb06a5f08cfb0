"""Raw files as streams of bytes: plain, .gz, .zst, or standard input."""

import io
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from dqrm_cpu.errors import DataError

STANDARD_INPUT = "-"

_GZIP, _ZSTANDARD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_PARQUET = b"PAR1"
_BZIP2, _ZIP, _XZ = b"BZh", b"PK\x03\x04", b"\xfd7zXZ"
_READ_AHEAD_BYTES = 4 << 20
_SAMPLE_BYTES = 1 << 20


@dataclass(frozen=True)
class RawFile:
    """One source: what names it, and what would change if it were another."""

    path: str
    bytes: int  # as stored; -1 for standard input
    changed_ns: int  # time of the last change; 0 for standard input
    kind: str  # plain, gzip, zstd, parquet, stdin

    @property
    def is_seekable(self) -> bool:
        """Whether reading can begin in the middle."""
        return self.kind == "plain"


def examine(path: str) -> RawFile:
    """Looks at a file without reading it; DataError where it cannot be read or is in a form that is not known."""
    if path == STANDARD_INPUT:
        return RawFile(path, -1, 0, "stdin")
    try:
        status = Path(path).stat()
        if stat.S_ISDIR(status.st_mode):
            raise DataError(f"{path} is a folder; name the raw files in it")
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{path} is not a plain file; feed pipes through standard input: prepare -")
        with Path(path).open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    return RawFile(str(Path(path).resolve()), status.st_size, status.st_mtime_ns, _kind(path, start))


def _kind(path: str, start: bytes) -> str:
    if start.startswith(_GZIP):
        return "gzip"
    if start.startswith(_ZSTANDARD):
        return "zstd"
    if start.startswith(_PARQUET):
        return "parquet"
    for magic, name in ((_BZIP2, "bzip2"), (_ZIP, "zip"), (_XZ, "xz")):
        if start.startswith(magic):
            raise DataError(f"{path} is {name}: unpack it, or pipe it into standard input ({name} ... | prepare -)")
    return "plain"


def open_raw(file: RawFile, stdin: BinaryIO) -> BinaryIO:
    """The text of a file, decompressed."""
    if file.kind == "stdin":
        return stdin
    try:
        if file.kind == "gzip":
            from isal import igzip

            opened: Any = igzip.open
            return cast(BinaryIO, opened(file.path, "rb"))
        if file.kind == "zstd":
            from dqrm_cpu.data.prepare.zstd_reader import ZstdReader

            return cast(BinaryIO, io.BufferedReader(ZstdReader(file.path), _READ_AHEAD_BYTES))
        return Path(file.path).open("rb", buffering=0)
    except OSError as error:
        raise DataError(f"{file.path} cannot be read: {error.strerror or error}") from None


def estimate_text_bytes(file: RawFile) -> int:
    """About how much text a file holds: compressed ones are measured by their first megabyte."""
    if file.kind in ("plain", "stdin"):
        return max(file.bytes, 0)
    if file.kind == "parquet":
        from dqrm_cpu.data.prepare.parquet import estimate_bytes

        return estimate_bytes(file.path)
    with Path(file.path).open("rb") as raw:
        sample = raw.read(_SAMPLE_BYTES)
    return int(file.bytes * _unpacked_bytes(file, sample) / max(len(sample), 1))


def _unpacked_bytes(file: RawFile, sample: bytes) -> int:
    if file.kind == "gzip":
        from isal import isal_zlib

        return len(isal_zlib.decompressobj(wbits=31).decompress(sample))
    import zstandard

    total = 0
    reader = zstandard.ZstdDecompressor(max_window_size=1 << 31).stream_reader(sample, read_across_frames=True)
    try:
        while block := reader.read(_SAMPLE_BYTES):
            total += len(block)
    except zstandard.ZstdError:  # the sample ends in the middle of a frame
        pass
    return max(total, 1)


def first_line(file: RawFile) -> str:
    """What a file begins with, up to the end of the line; empty for standard input, which can be read only once."""
    if file.kind == "stdin":
        return ""
    with open_raw(file, io.BytesIO()) as stream:
        text = stream.read(_SAMPLE_BYTES)
    return text.partition(b"\n")[0].decode("utf-8", "replace")
