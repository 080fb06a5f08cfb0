"""Blocks of text to rows, with the lines that are none."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.data.prepare.blocks import Block, Piece
from dqrm_cpu.data.prepare.layout import Layout, runs_of
from dqrm_cpu.data.prepare.memory import Arena, zeros
from dqrm_cpu.data.prepare.quotes import unquote
from dqrm_cpu.data.prepare.rows import LOG_TABLE, BadLines, RowArrays, copy_lines, count_lines, line_starts, parse_lines
from dqrm_cpu.data.prepare.words import PADDING

MOST_SHOWN = 10
"""Bad lines of a block that are remembered one by one; of the others only how many they are."""

SHOWN_BYTES = 60
"""So many bytes of a bad line are shown in a message, at most."""

_BAD_AT_ONCE = 4096
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class BadLine:
    """A line that is no row."""

    line: int  # within the block, from 0
    field: int  # from 0
    mistake: int
    text: bytes  # how it begins


@dataclass(frozen=True)
class ParsedBlock:
    """What a block held; the rows stand in the buffers."""

    block: Piece
    rows: int
    lines: int
    bad: tuple[BadLine, ...]  # the first ones
    num_bad: int
    bad_text: bytes  # of all of them, where it is kept
    missing: NDArray[np.int64]
    clamped: NDArray[np.int64]
    buffers: "RowBuffers"


class RowBuffers:
    """Memory for the rows of one block, used again for later ones."""

    def __init__(self, layout: Layout, arena: Arena) -> None:
        schema = layout.schema
        self.num_dense, self.num_tables = schema.num_dense, schema.num_tables
        self.width = self.num_dense + self.num_tables + 1
        self._key_type = np.dtype(np.uint64 if layout.has_text else np.uint32)
        self._arena = arena
        self._capacity = -1
        self._text = zeros(0, np.dtype(np.uint8))

    def reserve_text(self, num_bytes: int) -> NDArray[np.uint8]:
        """Place for so many bytes of text without its quotes."""
        if num_bytes > self._text.size:
            self._text = zeros(num_bytes + num_bytes // 8, np.dtype(np.uint8))
        return self._text

    def reserve(self, rows: int) -> None:
        """Makes place for so many rows."""
        if rows <= self._capacity:
            return
        rows += rows // 8
        num_bytes = rows * row_bytes(self.num_dense, self.num_tables, self._key_type.itemsize) + 6 * 64
        self._arena.clear()
        arena = self._arena if num_bytes <= self._arena.left else Arena.of_bytes(num_bytes)
        word, signed = np.dtype(np.uint32), np.dtype(np.int32)
        self.label: NDArray[np.uint32] = arena.take((rows,), word)
        self.dense: NDArray[np.float32] = arena.take((rows, self.num_dense), np.dtype(np.float32))
        self.keys: NDArray[Any] = arena.take((self.num_tables, rows), self._key_type)
        # A key of 32 bits is not needed any more once its id is known.
        is_narrow = self._key_type.itemsize == signed.itemsize
        self.ids: NDArray[np.int32] = (
            self.keys.view(signed) if is_narrow else arena.take((self.num_tables, rows), signed)
        )
        self.places: NDArray[np.int32] = arena.take((rows,), signed)
        self.records: NDArray[np.uint32] = arena.take((rows, self.width), word)
        self._capacity = rows


def row_bytes(num_dense: int, num_tables: int, key_bytes: int) -> int:
    """What a row takes in the buffers: label, place, dense, keys, ids where they do not replace keys, the record."""
    words = 2 + num_dense + (num_dense + num_tables + 1) + (num_tables if key_bytes != 4 else 0)
    return 4 * words + num_tables * key_bytes


class _Text(NamedTuple):
    """What the compiled parser reads: a block, or what is left of it without its quotes."""

    text: NDArray[np.uint8]
    size: int
    start: int  # behind the header
    mistakes: Mapping[int, tuple[int, int]]  # (mistake, field) of lines that were left empty for their quotes


class Parser:
    """Parses blocks of one layout; any number of threads may call it."""

    def __init__(self, layout: Layout, most_bad: int, keeps_text: bool) -> None:
        """Goes on in no block that has `most_bad` bad lines; `keeps_text` asks for the text of all of them."""
        self._layout = layout
        self._most_bad, self._keeps_text = most_bad, keeps_text
        self._runs = runs_of(layout)
        self._delimiter = layout.separator

    def parse(self, block: Block, buffers: RowBuffers) -> ParsedBlock:
        """Rows into the buffers."""
        lines = int(count_lines(block.text, block.size))
        # A row has a label, a byte behind each field, and perhaps a bad line behind it that began like a row.
        buffers.reserve(min(lines, block.size // (len(self._layout.fields) + 1) + 1))
        place = np.zeros(4, np.int64)
        first = self._start(block)
        plain = self._plain(block, buffers, first)
        place[0], place[2] = plain.start, self._has_header(block)
        missing = np.zeros(buffers.num_dense + buffers.num_tables, np.int64)
        clamped = np.zeros(buffers.num_dense, np.int64)
        step = np.ones(1, np.int64)
        out = self._addresses(buffers, missing, clamped, step)
        bad = _Bad(block, plain, self._layout.quotes, self._keeps_text)
        found = BadLines(*(np.zeros(_BAD_AT_ONCE, np.int64) for _ in BadLines._fields))
        address = plain.text.ctypes.data
        while place[0] < plain.size and bad.count < self._most_bad:
            place[3] = 0
            parse_lines(address, plain.size, place, out, found)
            bad.add(found, int(place[3]))
        return ParsedBlock(
            block, int(place[1]), int(place[2]), tuple(bad.first), bad.count, b"".join(bad.text), missing, clamped,
            buffers,
        )  # fmt: skip

    def _plain(self, block: Block, buffers: RowBuffers, start: int) -> _Text:
        if not self._layout.quotes:
            return _Text(block.text, block.size, start, {})
        text = buffers.reserve_text(block.size + PADDING)
        place = np.array([start, 0, self._has_header(block), 0], np.int64)
        noted: dict[int, tuple[int, int]] = {}
        while place[0] < block.size:
            place[3], mistakes = 0, np.zeros((_BAD_AT_ONCE, 3), np.int64)
            unquote(block.text, block.size, ord(self._layout.delimiter), text, mistakes, place)
            some = mistakes[: min(int(place[3]), MOST_SHOWN - len(noted))]
            noted |= {line: (mistake, field) for line, field, mistake in some.tolist()}
        text[place[1] : place[1] + PADDING] = 0
        return _Text(text, int(place[1]), 0, noted)

    def _addresses(
        self, buffers: RowBuffers, missing: NDArray[np.int64], clamped: NDArray[np.int64], step: NDArray[np.int64]
    ) -> RowArrays:
        arrays = (buffers.label, buffers.dense, buffers.keys, missing, clamped, step, self._runs, LOG_TABLE)
        label, dense, keys, missing_at, clamped_at, step_at, runs, logs = (array.ctypes.data for array in arrays)
        return RowArrays(
            label=label,
            dense=dense,
            keys=keys,
            missing=missing_at,
            clamped=clamped_at,
            step=step_at,
            runs=runs,
            logs=logs,
            num_runs=self._runs.shape[0],
            num_dense=buffers.num_dense,
            stride=buffers.keys.shape[1],
            wide_keys=int(buffers.keys.itemsize == 8),
            delimiter=self._delimiter,
        )

    def _has_header(self, block: Block) -> bool:
        return self._layout.header and not block.before.offset and block.size > 0

    def _start(self, block: Block) -> int:
        """Where the first row begins: behind a byte order mark and the header."""
        if self._has_header(block):
            return len(_line_from(block, 0))
        has_mark = not block.before.offset and block.text[: min(block.size, len(_BOM))].tobytes() == _BOM
        return len(_BOM) if has_mark else 0


class _Bad:
    """The bad lines of one block: the first ones, how many, and the text of all where it is kept."""

    def __init__(self, block: Block, plain: _Text, quotes: bool, keeps_text: bool) -> None:
        self.first: list[BadLine] = []
        self.text: list[bytes] = []
        self.count = 0
        self._block, self._plain = block, plain
        self._quotes, self._keeps_text = quotes, keeps_text
        self._place = np.zeros(2, np.int64)

    def add(self, found: BadLines, count: int) -> None:
        """Takes the first entries of `found`, which lie behind those before."""
        wanted = count if self._keeps_text else min(count, MOST_SHOWN - len(self.first))
        starts = found.start[:wanted]
        if self._quotes:  # they are places in the text without its quotes
            line_starts(self._block.text, found.line[:wanted], starts, self._place)
        for k in range(min(count, MOST_SHOWN - len(self.first))):
            line = int(found.line[k])
            mistake, field = self._plain.mistakes.get(line, (int(found.mistake[k]), int(found.field[k])))
            shown = self._block.text[starts[k] : starts[k] + SHOWN_BYTES].tobytes().partition(b"\n")[0]
            self.first.append(BadLine(line, field, mistake, shown))
        if self._keeps_text and count:
            out = np.empty(self._block.size, np.uint8)
            self.text.append(out[: copy_lines(self._block.text, starts, out)].tobytes())
        self.count += count


def _line_from(block: Block, start: int) -> bytes:
    """The line that starts here, with its newline."""
    length = 1024
    while True:
        text = block.text[start : min(block.size, start + length)].tobytes()
        end = text.find(b"\n")
        if end >= 0 or start + length >= block.size:
            return text[: end + 1]
        length *= 4
