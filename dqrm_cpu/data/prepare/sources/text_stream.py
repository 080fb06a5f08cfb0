"""The text of a source as a stream of bytes: plain, .gz, .zst, or standard input."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

from dqrm_cpu.base.files import open_regular
from dqrm_cpu.data.prepare.row_layout import LONGEST_LINE
from dqrm_cpu.data.prepare.sources.raw_file import ZSTD_SKIPPABLE, RawFile, open_source
from dqrm_cpu.data.prepare.sources.remote import is_url, open_remote
from dqrm_cpu.errors import DataError

_ZSTD_MAGIC = 0xFD2FB528
_BOM = "\ufeff"
REPLACED = "\ufffd"
"""Stands in a first line for what is no UTF-8."""

_READ_AHEAD_BYTES = 4 << 20
_SAMPLE_BYTES = 1 << 20
_PEEK_BYTES = 1 << 16
_LINES_BYTES = 1 << 16  # of which the first lines are told
_MOST_SAMPLE_TEXT = 16 << 20
_PACKED_STEP = 512  # how exactly it is known what a sample was packed in

_FILE_BUFFER_BYTES = 1 << 18
_BLOCKS_AT_ONCE = 16
_LARGEST_WINDOW = 1 << 31  # what `zstd --long=31` needs
_RUN_LENGTH = 1  # the type of a block that is one byte and how often it comes
_CHECKSUM_BYTES = 4
_DICTIONARY_ID_BYTES = (0, 1, 2, 4)
_CONTENT_SIZE_BYTES = (0, 2, 4, 8)


def open_raw(file: RawFile, stdin: BinaryIO, without_checksum: Callable[[str], None]) -> BinaryIO:
    """Opens a file as a stream of text; `without_checksum` gets the path of one in which damage cannot be noticed."""
    if file.kind == "stdin":
        return stdin
    try:
        if file.kind == "gzip":
            from isal import igzip

            opened: Any = igzip.open
            return cast(BinaryIO, opened(open_remote(file.path) if is_url(file.path) else file.path, "rb"))
        if file.kind == "zstd":
            reader = ZstdReader(file.path, lambda: without_checksum(file.path))
            return cast(BinaryIO, io.BufferedReader(reader, _READ_AHEAD_BYTES))
        return open_source(file.path)
    except OSError as error:
        raise DataError(f"{file.path} cannot be read: {error.strerror or error}") from None


def is_damage(error: BaseException) -> bool:
    """Tells whether an error of reading or unpacking is due to the file or the disk."""
    # Both classes derive from Exception only, and their modules are imported late.
    is_packing = type(error).__name__ in ("ZstdError", "IsalError")
    return is_packing or isinstance(error, (OSError, EOFError, ValueError, MemoryError))


def first_line(file: RawFile) -> str:
    """Returns the first line of a file; empty for standard input, which can be read only once."""
    return next(iter(first_lines(file)), "")


def first_lines(file: RawFile) -> list[str]:
    """Returns the lines with which a file begins; none of standard input, which can be read only once."""
    if file.kind == "stdin":
        return []
    try:
        with open_raw(file, io.BytesIO(), lambda _: None) as stream:
            text = b""
            while b"\n" not in text and len(text) <= LONGEST_LINE and (piece := stream.read(_SAMPLE_BYTES)):
                text += piece
    except Exception as error:
        if not is_damage(error):
            raise
        raise DataError(f"{file.path} cannot be read: {error}; is it damaged, or still being written?") from error
    if len(text.partition(b"\n")[0]) > LONGEST_LINE:
        raise DataError(f"{file.path} begins with a line of more than {LONGEST_LINE:,} bytes; is it a text file?")
    return _lines_of(text)


def _lines_of(text: bytes) -> list[str]:
    """Splits what a text begins with into whole lines; none where the first one is empty."""
    first = text.partition(b"\n")[0]
    lines = text[:_LINES_BYTES].split(b"\n")[:-1] or [first]
    return [line.decode("utf-8", "replace").removeprefix(_BOM) for line in lines] if first else []


def measure_packing(file: RawFile) -> tuple[int, int]:
    """Unpacks the first megabyte of a compressed file: (bytes of text, bytes that they were packed in).

    Damage is reported by whoever reads the whole file.
    """
    try:
        with open_remote(file.path) if is_url(file.path) else open_regular(Path(file.path)) as raw:
            sample = raw.read(_SAMPLE_BYTES)
    except OSError as error:
        raise DataError(f"{file.path} cannot be read: {error.strerror or error}") from None
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


class PeekedInput(io.RawIOBase):
    """Standard input whose first line is looked at, and that is then read from its beginning all the same."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__()
        self._stream = stream
        self._ahead = b""

    def readable(self) -> bool:
        return True

    def first_lines(self) -> list[str]:
        """Reads ahead to the end of the first line; returns it with what came along, nothing where there is nothing."""
        while b"\n" not in self._ahead and (piece := self._stream.read(_PEEK_BYTES)):
            self._ahead += piece
            if b"\n" not in piece and len(self._ahead) > LONGEST_LINE:
                raise DataError(
                    f"standard input begins with a line of more than {LONGEST_LINE:,} bytes; is it text, and unpacked?"
                )
        return _lines_of(self._ahead)

    def readinto(self, buffer: Any) -> int:
        """Reads as many bytes as there are; 0 at the end."""
        view = memoryview(buffer).cast("B")
        piece = self._ahead[: len(view)] if self._ahead else self._stream.read(len(view))
        self._ahead = self._ahead[len(piece) :]
        view[: len(piece)] = piece
        return len(piece)


class ZstdReader(io.RawIOBase):
    """A raw stream of the text of a .zst file of any number of frames; put a buffer in front of it.

    A file that ends too early is an error, not a shorter file. The reader walks from block to block of a frame
    (RFC 8878), each of which holds at most 128 KiB of text: a small file that unpacks to a very large one is handed
    out in pieces like any other.
    """

    def __init__(self, path: str, without_checksum: Callable[[], None]) -> None:
        """Calls `without_checksum` at each frame in which damage could not be noticed."""
        super().__init__()
        import zstandard  # most sources are not .zst

        self._file = io.BufferedReader(cast(io.RawIOBase, open_source(path)), _FILE_BUFFER_BYTES)
        self._without_checksum = without_checksum
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW)
        self._frame: Any = None
        self._has_checksum = False
        self._text = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Reads as many bytes as there are; 0 at the end."""
        view = memoryview(buffer).cast("B")
        while not self._text:
            if self._frame is None and not self._begin_frame():
                return 0
            if self._frame is not None:
                self._text = memoryview(self._unpack_blocks())
        count = min(len(view), len(self._text))
        view[:count] = self._text[:count]
        self._text = self._text[count:]
        return count

    def _begin_frame(self) -> bool:
        """Reads the header of the next frame, or steps over one without text; False at the end of the file."""
        first = self._file.read(1)
        if not first:
            return False
        magic = int.from_bytes(first + self._exactly(3), "little")
        if ZSTD_SKIPPABLE[0] <= magic <= ZSTD_SKIPPABLE[1]:
            left = int.from_bytes(self._exactly(4), "little")
            while left:
                left -= len(self._exactly(min(left, _FILE_BUFFER_BYTES)))
            return True
        if magic != _ZSTD_MAGIC:
            raise ValueError("something that is no zstd frame stands behind the last one")
        descriptor = self._exactly(1)
        flags = descriptor[0]
        is_single = flags >> 5 & 1
        size_bytes = _CONTENT_SIZE_BYTES[flags >> 6] or is_single
        header = self._exactly(1 - is_single + _DICTIONARY_ID_BYTES[flags & 3] + size_bytes)
        self._has_checksum = bool(flags >> 2 & 1)
        if not self._has_checksum:
            self._without_checksum()
        self._frame = self._decompressor.decompressobj()
        self._frame.decompress(_ZSTD_MAGIC.to_bytes(4, "little") + descriptor + header)
        return True

    def _unpack_blocks(self) -> bytes:
        """Unpacks the text of the next blocks; ends the frame behind its last one."""
        pieces = []
        for _ in range(_BLOCKS_AT_ONCE):
            head = self._exactly(3)
            number = int.from_bytes(head, "little")
            is_last, kind, size = number & 1, number >> 1 & 3, number >> 3
            pieces += [head, self._exactly(1 if kind == _RUN_LENGTH else size)]
            if is_last:
                if self._has_checksum:
                    pieces.append(self._exactly(_CHECKSUM_BYTES))
                break
        text: bytes = self._frame.decompress(b"".join(pieces))
        if is_last:
            if not self._frame.eof:
                raise ValueError("a compressed frame has no end where it should")
            self._frame = None
        return text

    def _exactly(self, count: int) -> bytes:
        piece = self._file.read(count)
        if len(piece) < count:
            raise EOFError("the file ends in the middle of a compressed frame")
        return piece

    def close(self) -> None:
        self._file.close()
        super().close()
