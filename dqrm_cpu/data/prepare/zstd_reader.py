"""Text out of a .zst file of any number of frames; one that ends too early is an error, not a shorter file."""

import io
from pathlib import Path
from typing import Any

import zstandard

_PIECE_BYTES = 1 << 18
_LARGEST_WINDOW = 1 << 31  # what `zstd --long=31` needs


class ZstdReader(io.RawIOBase):
    """A raw stream: put a buffer in front of it."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._file = Path(path).open("rb")  # noqa: SIM115  # closed with this stream
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW)
        self._frame: Any = None
        self._packed = b""
        self._text = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """As many bytes as there are, 0 at the end."""
        view = memoryview(buffer).cast("B")
        while not self._text:
            if not self._decompress():
                return 0
        count = min(len(view), len(self._text))
        view[:count] = self._text[:count]
        self._text = self._text[count:]
        return count

    def _decompress(self) -> bool:
        """Unpacks some more; False at the end of the file."""
        if not self._packed:
            self._packed = self._file.read(_PIECE_BYTES)
        if not self._packed:
            if self._frame is not None:
                raise EOFError("the file ends in the middle of a compressed frame")
            return False
        if self._frame is None:
            self._frame = self._decompressor.decompressobj()
        self._text = memoryview(self._frame.decompress(self._packed))
        self._packed = self._frame.unused_data if self._frame.eof else b""
        if self._frame.eof:
            self._frame = None
        return True

    def close(self) -> None:
        self._file.close()
        super().close()
