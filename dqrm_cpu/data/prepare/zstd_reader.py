"""Text out of a .zst file of any number of frames; one that ends too early is an error, not a shorter file.

The reader walks from block to block of a frame (RFC 8878), each of which holds at most 128 KiB of text: a small file
that unpacks to a very large one is handed out in pieces like any other.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zstandard

SKIPPABLE = (0x184D2A50, 0x184D2A5F)
"""First and last of the numbers with which frames begin that hold no text."""

_MAGIC = 0xFD2FB528
_FILE_BUFFER_BYTES = 1 << 18
_BLOCKS_AT_ONCE = 16
_LARGEST_WINDOW = 1 << 31  # what `zstd --long=31` needs
_RUN_LENGTH = 1  # the type of a block that is one byte and how often it comes
_CHECKSUM_BYTES = 4
_DICTIONARY_ID_BYTES = (0, 1, 2, 4)
_CONTENT_SIZE_BYTES = (0, 2, 4, 8)


class ZstdReader(io.RawIOBase):
    """A raw stream: put a buffer in front of it."""

    def __init__(self, path: str, without_checksum: Callable[[], None]) -> None:
        """Calls `without_checksum` at each frame in which damage could not be noticed."""
        super().__init__()
        self._file = Path(path).open("rb", buffering=_FILE_BUFFER_BYTES)  # noqa: SIM115  # closed with this stream
        self._without_checksum = without_checksum
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW)
        self._frame: Any = None
        self._has_checksum = False
        self._text = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """As many bytes as there are, 0 at the end."""
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
        if SKIPPABLE[0] <= magic <= SKIPPABLE[1]:
            left = int.from_bytes(self._exactly(4), "little")
            while left:
                left -= len(self._exactly(min(left, _FILE_BUFFER_BYTES)))
            return True
        if magic != _MAGIC:
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
        self._frame.decompress(_MAGIC.to_bytes(4, "little") + descriptor + header)
        return True

    def _unpack_blocks(self) -> bytes:
        """The text of the next blocks; ends the frame behind its last one."""
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
