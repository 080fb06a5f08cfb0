"""Raw files as streams of bytes: plain, .gz, .zst, or standard input."""

import io
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from dqrm_cpu.base.files import open_regular
from dqrm_cpu.data.prepare.mistakes import LONGEST_LINE
from dqrm_cpu.errors import DataError

STANDARD_INPUT = "-"

_GZIP, _ZSTANDARD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_SKIPPABLE_END = b"\x2a\x4d\x18"  # behind a first byte of 0x50 to 0x5f: a zstd frame that holds no text
_PARQUET = b"PAR1"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_BOM = "\ufeff"
_BZIP2, _ZIP, _XZ = b"BZh", b"PK\x03\x04", b"\xfd7zXZ"
_READ_AHEAD_BYTES = 4 << 20
_SAMPLE_BYTES = 1 << 20
_MOST_SAMPLE_TEXT = 16 << 20
_PACKED_STEP = 512  # how exactly it is known what a sample was packed in


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
        with open_regular(Path(path)) as file:
            start = file.read(8)
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        raise DataError(f"{path!s} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return RawFile(str(Path(path).resolve()), status.st_size, status.st_mtime_ns, _kind(path, start))


def _kind(path: str, start: bytes) -> str:
    if start.startswith(_GZIP):
        return "gzip"
    if start.startswith(_ZSTANDARD) or (start[:1] in b"PQRSTUVWXYZ[\\]^_" and start[1:4] == _SKIPPABLE_END):
        return "zstd"
    if start.startswith(_PARQUET):
        return "parquet"
    for magic, name in ((_BZIP2, "bzip2"), (_ZIP, "zip"), (_XZ, "xz")):
        if start.startswith(magic):
            raise DataError(f"{path} is {name}: unpack it, or pipe it into standard input ({name} ... | prepare -)")
    if start.startswith(_UTF16):
        raise DataError(f"{path} is UTF-16 text: convert it first (iconv -f UTF-16 -t UTF-8)")
    return "plain"


def require_unchanged(file: RawFile) -> None:
    """DataError when a file is not the one that was examined: it was written, cut or replaced while it was read."""
    if file.kind == "stdin":
        return
    try:
        status = Path(file.path).stat()
    except OSError as error:
        raise DataError(
            f"{file.path} went away while it was read ({error.strerror}); give it back and repeat"
        ) from None
    if (status.st_size, status.st_mtime_ns) != (file.bytes, file.changed_ns):
        raise DataError(
            f"{file.path} changed while it was read (it had {file.bytes:,} bytes, now {status.st_size:,}), so that "
            "what was read is neither; prepare it once it is complete, with --restart"
        )


def is_damage(error: BaseException) -> bool:
    """Whether an error of reading or unpacking is the file's, or the disk's."""
    # Both classes derive from Exception only, and their modules are imported late.
    is_packing = type(error).__name__ in ("ZstdError", "IsalError")
    return is_packing or isinstance(error, (OSError, EOFError, ValueError, MemoryError))


def open_raw(file: RawFile, stdin: BinaryIO, without_checksum: Callable[[str], None]) -> BinaryIO:
    """The text of a file, decompressed; `without_checksum` gets the path of one in which damage cannot be noticed."""
    if file.kind == "stdin":
        return stdin
    try:
        if file.kind == "gzip":
            from isal import igzip

            opened: Any = igzip.open
            return cast(BinaryIO, opened(file.path, "rb"))
        if file.kind == "zstd":
            from dqrm_cpu.data.prepare.zstd_reader import ZstdReader

            reader = ZstdReader(file.path, lambda: without_checksum(file.path))
            return cast(BinaryIO, io.BufferedReader(reader, _READ_AHEAD_BYTES))
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
    try:
        with open_regular(Path(file.path)) as raw:
            sample = raw.read(_SAMPLE_BYTES)
    except OSError as error:
        raise DataError(f"{file.path} cannot be read: {error.strerror or error}") from None
    text, packed = _unpacked_bytes(file, sample)
    return int(file.bytes * text / max(packed, 1))


def _unpacked_bytes(file: RawFile, sample: bytes) -> tuple[int, int]:
    """(bytes of text, bytes that they were packed in) of some of a sample; what is damaged is told by who reads it."""
    total = 0
    try:
        if file.kind == "gzip":
            from isal import isal_zlib

            packer = isal_zlib.decompressobj(wbits=31)
            total = len(packer.decompress(sample, _MOST_SAMPLE_TEXT))
            return total, len(sample) - len(packer.unused_data) - len(packer.unconsumed_tail)
        import zstandard

        packed = io.BytesIO(sample)
        unpacker = zstandard.ZstdDecompressor(max_window_size=1 << 31)
        reader = unpacker.stream_reader(packed, read_size=_PACKED_STEP, read_across_frames=True)
        while total < _MOST_SAMPLE_TEXT and (block := reader.read(_SAMPLE_BYTES)):
            total += len(block)
        return max(total, 1), packed.tell()
    except Exception as error:
        if not is_damage(error):
            raise
        return max(total, 1), len(sample)  # of zstd also where the sample ends in the middle of a frame


def first_line(file: RawFile) -> str:
    """What a file begins with, up to the end of the line; empty for standard input, which can be read only once."""
    if file.kind == "stdin":
        return ""
    try:
        with open_raw(file, io.BytesIO(), lambda _: None) as stream:
            text = b""
            while b"\n" not in text and len(text) <= LONGEST_LINE and (piece := stream.read(_SAMPLE_BYTES)):
                text += piece
    except Exception as error:
        if not is_damage(error):
            raise
        raise DataError(f"{file.path} cannot be read: {error}; is it damaged, or still being written?") from error
    line = text.partition(b"\n")[0]
    if len(line) > LONGEST_LINE:
        raise DataError(f"{file.path} begins with a line of more than {LONGEST_LINE:,} bytes; is it a text file?")
    return line.decode("utf-8", "replace").removeprefix(_BOM)
