"""The text of all sources in blocks of whole lines, read ahead on a thread."""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.data.prepare.buffers import PADDING
from dqrm_cpu.data.prepare.row_layout import LONGEST_LINE
from dqrm_cpu.data.prepare.sources.raw_file import RawFile, SourcePosition, require_unchanged
from dqrm_cpu.data.prepare.sources.text_stream import is_damage, open_raw
from dqrm_cpu.errors import DataError

_PIECE_BYTES = 1 << 20
_NEWLINE = 10


@dataclass(frozen=True)
class TextBlock:
    """Whole lines; the last one ends with a newline even where the file does not, and is cut where it is too long."""

    text: NDArray[np.uint8]  # with PADDING beyond the end
    size: int
    before: SourcePosition
    after: SourcePosition
    ends_source: bool


def text_buffer_bytes(block_bytes: int) -> int:
    """Returns the size of the buffer that a block is read into."""
    return block_bytes + LONGEST_LINE + 1 + PADDING


class TextBlockReader:
    """Iterates over blocks of the sources from a position on; use as a context, so that the thread ends."""

    def __init__(
        self,
        sources: Sequence[RawFile],
        start: SourcePosition,
        block_bytes: int,
        buffers: Sequence[NDArray[np.uint8]],
        stdin: BinaryIO,
        note: Callable[[str], None],
        stops_at_bad: bool,
    ) -> None:
        """With `stops_at_bad`, nobody waits for the end of a line that is too long: it ends the preparation."""
        self._sources, self._start, self._stdin = sources, start, stdin
        self._note, self._stops_at_bad = note, stops_at_bad
        self._block_bytes = block_bytes
        self._free: queue.SimpleQueue[NDArray[np.uint8] | None] = queue.SimpleQueue()
        for buffer in buffers:
            self._free.put(buffer)
        self._full: queue.SimpleQueue[TextBlock | BaseException | None] = queue.SimpleQueue()
        self._stopping = self._has_noted = False
        self._thread = threading.Thread(target=self._run, name="dqrm-read", daemon=True)

    def __enter__(self) -> "TextBlockReader":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        self._free.put(None)
        if all(source.kind != "stdin" for source in self._sources):  # a read from a pipe may never end
            self._thread.join()

    def __iter__(self) -> Iterator[TextBlock]:
        while True:
            block = self._full.get()
            if block is None:
                return
            if isinstance(block, BaseException):
                raise block
            yield block

    def release(self, block: TextBlock) -> None:
        """Takes a block that has been parsed: its buffer may be filled again."""
        self._free.put(block.text)

    def _run(self) -> None:
        try:
            position = self._start
            for number in range(self._start.source, len(self._sources)):
                if number != position.source:
                    position = SourcePosition(number)
                stream = open_raw(self._sources[number], self._stdin, self._note_missing_checksums)
                try:
                    if not self._read_source(stream, number, position):
                        return
                finally:
                    if stream is not self._stdin:
                        stream.close()
            self._full.put(None)
        except BaseException as error:  # raised by the thread that iterates
            self._full.put(error)

    def _note_missing_checksums(self, path: str) -> None:
        if not self._has_noted:
            self._note(f"{path} has no zstd checksums: damage in it cannot be noticed; zstd --check writes them")
        self._has_noted = True

    def _read_source(self, stream: BinaryIO, number: int, position: SourcePosition) -> bool:
        """Reads the blocks of one source; False when nobody wants them any more."""
        source = self._sources[number]
        try:
            self._skip(stream, source, position)
            rest = b""
            while True:
                text = self._free.get()
                if text is None or self._stopping:
                    return False
                cut, after, rest, ended = self._fill_block(stream, text, rest, position)
                if ended:
                    require_unchanged(source)
                if cut and text[cut - 1] != _NEWLINE:
                    text[cut] = _NEWLINE
                    cut += 1
                text[cut : cut + PADDING] = 0
                self._full.put(TextBlock(text, cut, position, after, ended))
                position = after
                if ended:
                    return True
        except DataError:
            raise
        except Exception as error:
            if is_damage(error):
                raise _damaged(source, position, error) from error
            raise

    def _fill_block(
        self, stream: BinaryIO, text: NDArray[np.uint8], rest: bytes, position: SourcePosition
    ) -> tuple[int, SourcePosition, bytes, bool]:
        """Reads whole lines: (their bytes, the position behind them, what was read beyond it, whether all was)."""
        view = text.data
        view[: len(rest)] = rest
        size, ended = _fill(stream, view, len(rest), self._block_bytes)
        if not ended and _line_end(text, size, size) < 0:
            size, ended = _fill(stream, view, size, self._block_bytes + LONGEST_LINE)
        cut = size if ended else _line_end(text, size, LONGEST_LINE + 1)
        if cut >= 0:
            after = position.past(view[:cut])
            return cut, after, text[cut:size].tobytes(), ended
        after = position.past(view[:size])
        cut = max(0, _line_end(text, size, size)) + LONGEST_LINE + 1
        return cut, *self._to_line_end(stream, after)

    def _to_line_end(self, stream: BinaryIO, position: SourcePosition) -> tuple[SourcePosition, bytes, bool]:
        """Reads on to the end of a line, keeping none: (position there, what was read beyond it, whether all was)."""
        piece = bytearray(LONGEST_LINE)
        while not self._stopping and not self._stops_at_bad:
            taken = _read_into(stream, memoryview(piece))
            end = piece.find(b"\n", 0, taken) + 1
            position = position.past(memoryview(piece)[: end or taken])
            if end or not taken:
                return position, bytes(piece[end:taken]) if end else b"", not taken
        return position, b"", True

    def _skip(self, stream: BinaryIO, source: RawFile, position: SourcePosition) -> None:
        """Goes to the position; a file without random access is read again, and must be what it was."""
        if position.offset == 0:
            return
        if source.is_seekable:
            stream.seek(position.offset)
            return
        reached = SourcePosition(position.source)
        while reached.offset < position.offset and not self._stopping:
            piece = stream.read(min(position.offset - reached.offset, _PIECE_BYTES))
            if not piece:
                break
            reached = reached.past(piece)
        if not self._stopping and reached != position:
            raise DataError(
                f"{source.path} begins otherwise than when the preparation was interrupted; "
                "give the same data, or begin anew with --restart"
            )


def _fill(stream: BinaryIO, view: memoryview, size: int, limit: int) -> tuple[int, bool]:
    """Adds text behind the first `size` bytes, up to the limit: (bytes, whether the source ended)."""
    while size < limit:
        taken = _read_into(stream, view[size : size + min(_PIECE_BYTES * 4, limit - size)])
        if taken == 0:
            return size, True
        size += taken
    return size, False


def _read_into(stream: BinaryIO, view: memoryview) -> int:
    readinto = getattr(stream, "readinto", None)
    if readinto is not None:
        return int(readinto(view) or 0)
    piece = stream.read(len(view))
    view[: len(piece)] = piece
    return len(piece)


def _line_end(text: NDArray[np.uint8], size: int, most: int) -> int:
    """Finds the byte behind the last newline of the last `most` bytes, or returns -1. Almost always it is near."""
    length = 4096
    while True:
        start = max(0, size - min(length, most))
        newline = text[start:size].tobytes().rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        if start == 0 or length >= most:
            return -1
        length *= 16


def _damaged(source: RawFile, position: SourcePosition, error: BaseException) -> DataError:
    return DataError(
        f"{source.path} cannot be read beyond byte {position.offset:,} of its text: {error}; "
        "is it damaged, or still being written?"
    )
