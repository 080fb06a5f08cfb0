"""Sources: raw files that have been examined but not read, and positions in them."""

import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from isal import isal_zlib

from dqrm_cpu.base.files import open_regular
from dqrm_cpu.data.prepare.sources.remote import is_url, open_remote, remote_facts
from dqrm_cpu.errors import DataError

STANDARD_INPUT = "-"

ZSTD_SKIPPABLE = (0x184D2A50, 0x184D2A5F)
"""First and last of the numbers with which zstd frames begin that hold no text."""

_GZIP, _ZSTANDARD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_PARQUET = b"PAR1"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_BZIP2, _ZIP, _XZ = b"BZh", b"PK\x03\x04", b"\xfd7zXZ"


@dataclass(frozen=True)
class RawFile:
    """One source: what names it, and what would change if it were another."""

    path: str
    bytes: int  # as stored; -1 for standard input
    changed_ns: int  # time of the last change; 0 for standard input; of a URL, a number of its version
    kind: str  # plain, gzip, zstd, parquet, stdin

    @property
    def is_seekable(self) -> bool:
        """True for a file that can be read from any byte on; False for pipes and packed files."""
        return self.kind == "plain" and not is_url(self.path)


@dataclass(frozen=True)
class SourcePosition:
    """A point between two rows of a source."""

    source: int = 0  # number of the file
    offset: int = 0  # bytes of text before it
    crc32: int = 0  # of the text before it

    def past(self, text: "bytes | memoryview") -> "SourcePosition":
        """Returns the position behind the text that follows this one."""
        return SourcePosition(self.source, self.offset + len(text), isal_zlib.crc32(text, self.crc32))


class SourceBlock(Protocol):
    """Neighbouring rows of one source, as text or as columns."""

    @property
    def before(self) -> SourcePosition: ...
    @property
    def after(self) -> SourcePosition: ...
    @property
    def ends_source(self) -> bool: ...


def examine(path: str) -> RawFile:
    """Looks at a file without reading it; DataError where it cannot be read or has a form that is not supported."""
    if path == STANDARD_INPUT:
        return RawFile(path, -1, 0, "stdin")
    if is_url(path):
        return _examine_remote(path)
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


def _examine_remote(url: str) -> RawFile:
    facts = remote_facts(url)
    try:
        with open_remote(url) as file:
            start = file.read(8)
    except OSError as error:
        raise DataError(f"{url} cannot be read: {error}") from None
    return RawFile(url, facts.bytes, facts.version, _kind(url, start))


def open_source(path: str) -> BinaryIO:
    """Opens a file or an object behind a URL for reading, without a buffer where the system has one."""
    return open_remote(path) if is_url(path) else cast(BinaryIO, Path(path).open("rb", buffering=0))


def _kind(path: str, start: bytes) -> str:
    if start.startswith(_GZIP):
        return "gzip"
    if start.startswith(_ZSTANDARD) or ZSTD_SKIPPABLE[0] <= int.from_bytes(start[:4], "little") <= ZSTD_SKIPPABLE[1]:
        return "zstd"
    if start.startswith(_PARQUET):
        return "parquet"
    for magic, name in ((_BZIP2, "bzip2"), (_ZIP, "zip"), (_XZ, "xz")):
        if start.startswith(magic) and path.lower().endswith((".xlsx", ".ods")):
            raise DataError(f"{path} is the workbook of a spreadsheet; save its sheet as CSV")
        if start.startswith(magic):
            raise DataError(f"{path} is {name}: unpack it, or pipe it into standard input ({name} ... | prepare -)")
    if start.startswith(_UTF16):
        raise DataError(f"{path} is UTF-16 text: convert it first (iconv -f UTF-16 -t UTF-8)")
    return "plain"


def require_unchanged(file: RawFile) -> None:
    """Raises DataError when a file was written, cut or replaced since it was examined."""
    if file.kind == "stdin":
        return
    if is_url(file.path):
        facts = remote_facts(file.path)
        _require_same(file, facts.bytes, facts.version)
        return
    try:
        status = Path(file.path).stat()
    except OSError as error:
        raise DataError(
            f"{file.path} went away while it was read ({error.strerror}); give it back and repeat"
        ) from None
    _require_same(file, status.st_size, status.st_mtime_ns)


def _require_same(file: RawFile, num_bytes: int, changed_ns: int) -> None:
    if (num_bytes, changed_ns) != (file.bytes, file.changed_ns):
        raise DataError(
            f"{file.path} changed while it was read (it had {file.bytes:,} bytes, now {num_bytes:,}), so that "
            "what was read is neither; prepare it once it is complete, with --restart"
        )
