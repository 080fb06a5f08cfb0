"""Blocks of text to rows, and the lines that are none."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.data.prepare.bad_rows import MOST_SHOWN, SHOWN_BYTES, BadLine
from dqrm_cpu.data.prepare.buffers import PADDING, RowBuffers
from dqrm_cpu.data.prepare.parse.bags import BagColumn, bags_of_cells
from dqrm_cpu.data.prepare.parse.key_cells import KeyCells, cells_of
from dqrm_cpu.data.prepare.parse.quotes import unquote
from dqrm_cpu.data.prepare.parse.rows import LOG_TABLE, BadLines, RowArrays, parse_lines
from dqrm_cpu.data.prepare.parse.values import threshold_of
from dqrm_cpu.data.prepare.row_layout import LONGEST_LINE, Layout, raw_numbers, runs_of
from dqrm_cpu.data.prepare.sources.raw_file import SourceBlock
from dqrm_cpu.data.prepare.sources.text_blocks import TextBlock
from dqrm_cpu.kernels.jit.compile import thorough_kernel

_BAD_AT_ONCE = 4096
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class ParsedBlock:
    """The result of parsing a block; its rows stand in the buffers."""

    block: SourceBlock
    rows: int
    lines: int
    bad: tuple[BadLine, ...]  # the first ones
    num_bad: int
    bad_text: bytes  # of all of them, where it is kept
    missing: NDArray[np.int64]
    clamped: NDArray[np.int64]
    buffers: RowBuffers
    bad_lines: NDArray[np.int64]  # the numbers of all bad lines within the block, from 0
    keys: tuple[KeyCells, ...]  # of the rows, for each column that is carried along
    bags: Mapping[int, BagColumn]  # by the numbers of their tables

    @property
    def categories(self) -> tuple[list[NDArray[Any]], list[NDArray[np.int32]]]:
        """The keys of each table's column, and the memory for their ids; those of a bag are more or fewer than rows."""
        keys, ids = [*self.buffers.keys[:, : self.rows]], [*self.buffers.ids[:, : self.rows]]
        for t, bag in self.bags.items():
            keys[t], ids[t] = bag.keys, bag.ids
        return keys, ids


class _Text(NamedTuple):
    """The text that the compiled parser reads: a block, or what is left of it without its quotes."""

    text: NDArray[np.uint8]
    size: int
    start: int  # behind the header
    mistakes: Mapping[int, tuple[int, int]]  # (mistake, field) of lines that were left empty for their quotes


class TextParser:
    """Parses blocks of one layout; any number of threads may call it."""

    def __init__(self, layout: Layout, most_bad: int, keeps_text: bool) -> None:
        """Stops in a block that has `most_bad` bad lines; `keeps_text` asks for the text of all of them."""
        self._layout = layout
        self._most_bad, self._keeps_text = most_bad, keeps_text
        self._runs, self._raw = runs_of(layout), raw_numbers(layout)
        self._num_keys = len(layout.keys)
        self._bags = dict(zip(layout.bag_tables, layout.bags, strict=True))

    def parse(self, block: TextBlock, buffers: RowBuffers) -> ParsedBlock:
        """Parses a block: its rows go into the buffers."""
        lines = int(count_lines(block.text, block.size))
        # A row has a byte behind each field, one of a label, and perhaps a bad line behind it that began like a row.
        buffers.reserve(min(lines, block.size // (len(self._layout.fields) + self._layout.num_labels) + 1))
        place = np.zeros(4, np.int64)
        first = self._first_row(block)
        plain = self._plain(block, buffers, first)
        place[0], place[2] = plain.start, self._has_header(block)
        missing = np.zeros(buffers.num_dense + buffers.num_tables, np.int64)
        clamped = np.zeros(buffers.num_dense, np.int64)
        increment = np.ones(1, np.int64)
        key_cells = np.empty((self._num_keys + len(self._bags), buffers.keys.shape[1], 2), np.int64)
        out = self._addresses(buffers, missing, clamped, increment, key_cells)
        bad = _BlockBadLines(block, plain, self._layout.quotes, self._keeps_text)
        bad_lines = BadLines(*(np.zeros(_BAD_AT_ONCE, np.int64) for _ in BadLines._fields))
        address = plain.text.ctypes.data
        while place[0] < plain.size and bad.count < self._most_bad:
            place[3] = 0
            parse_lines(address, plain.size, place, out, bad_lines)
            bad.add(bad_lines, int(place[3]))
        rows = int(place[1])
        keys = tuple(cells_of(plain.text, places[:rows]) for places in key_cells[: self._num_keys])
        bags = {}
        for (t, field), places in zip(self._bags.items(), key_cells[self._num_keys :], strict=True):
            bags[t] = bags_of_cells(plain.text, places[:rows], field.separator, field.limit)
            missing[buffers.num_dense + t] = bags[t].num_empty
        return ParsedBlock(
            block, rows, int(place[2]), tuple(bad.first), bad.count, b"".join(bad.text), missing, clamped,
            buffers, bad.lines, keys, bags,
        )  # fmt: skip

    def _plain(self, block: TextBlock, buffers: RowBuffers, start: int) -> _Text:
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
        self,
        buffers: RowBuffers,
        missing: NDArray[np.int64],
        clamped: NDArray[np.int64],
        increment: NDArray[np.int64],
        key_cells: NDArray[np.int64],
    ) -> RowArrays:
        return RowArrays(
            label=buffers.label.ctypes.data,
            dense=buffers.dense.ctypes.data,
            keys=buffers.keys.ctypes.data,
            missing=missing.ctypes.data,
            clamped=clamped.ctypes.data,
            increment=increment.ctypes.data,
            key_cells=key_cells.ctypes.data,
            runs=self._runs.ctypes.data,
            raw=self._raw.ctypes.data,
            logs=LOG_TABLE.ctypes.data,
            num_runs=self._runs.shape[0],
            num_dense=buffers.num_dense,
            stride=buffers.keys.shape[1],
            wide_keys=int(buffers.keys.itemsize == 8),
            delimiter=self._layout.separator,
            threshold=threshold_of(self._layout),
        )

    def _has_header(self, block: TextBlock) -> bool:
        return self._layout.header and not block.before.offset and block.size > 0

    def _first_row(self, block: TextBlock) -> int:
        """Finds where the first row begins: behind a byte order mark and the header."""
        if self._has_header(block):
            return _first_line_bytes(block)
        has_mark = not block.before.offset and block.text[: min(block.size, len(_BOM))].tobytes() == _BOM
        return len(_BOM) if has_mark else 0


class _BlockBadLines:
    """The bad lines of one block: the first ones, how many, and the text of all where it is kept."""

    def __init__(self, block: TextBlock, plain: _Text, quotes: bool, keeps_text: bool) -> None:
        self.first: list[BadLine] = []
        self.text: list[bytes] = []
        self.count = 0
        self._lines: list[NDArray[np.int64]] = []
        self._block, self._plain = block, plain
        self._quotes, self._keeps_text = quotes, keeps_text
        self._place = np.zeros(2, np.int64)

    @property
    def lines(self) -> NDArray[np.int64]:
        """The numbers of all of them, from 0."""
        return np.concatenate(self._lines) if self._lines else np.empty(0, np.int64)

    def add(self, lines: BadLines, count: int) -> None:
        """Takes the first entries of `lines`, which lie behind those before."""
        wanted = count if self._keeps_text else min(count, MOST_SHOWN - len(self.first))
        starts = lines.start[:wanted]
        if self._quotes:  # they are places in the text without its quotes
            line_starts(self._block.text, lines.line[:wanted], starts, self._place)
        for k in range(min(count, MOST_SHOWN - len(self.first))):
            line = int(lines.line[k])
            mistake, field = self._plain.mistakes.get(line, (int(lines.mistake[k]), int(lines.field[k])))
            shown = self._block.text[starts[k] : starts[k] + SHOWN_BYTES].tobytes().partition(b"\n")[0]
            self.first.append(BadLine(line, field, mistake, shown))
        if count:
            self._lines.append(lines.line[:count].copy())
        if self._keeps_text and count:
            out = np.empty(self._block.size, np.uint8)
            self.text.append(out[: copy_lines(self._block.text, starts, out)].tobytes())
        self.count += count


def _first_line_bytes(block: TextBlock) -> int:
    """Returns the length of the first line with its newline."""
    length = 1024
    while True:
        end = block.text[: min(block.size, length)].tobytes().find(b"\n")
        if end >= 0 or length >= block.size:
            return end + 1
        length *= 4


@thorough_kernel
def count_lines(text: NDArray[np.uint8], end: int) -> int:
    """Counts the newlines before `end`."""
    count = 0
    for k in range(end):
        count += text[k] == 10
    return count


@thorough_kernel
def line_starts(text: NDArray[np.uint8], lines: NDArray[np.int64], starts: NDArray[np.int64], place: Any) -> None:
    """Finds where the lines of these rising numbers, from 0, begin; place = int64[at, line] says where to start."""
    at, line = place[0], place[1]
    for k in range(lines.shape[0]):
        while line < lines[k]:
            while text[at] != 10:
                at += 1
            at += 1
            line += 1
        starts[k] = at
    place[0], place[1] = at, line


@thorough_kernel
def copy_lines(text: NDArray[np.uint8], starts: NDArray[np.int64], out: NDArray[np.uint8]) -> int:
    """Copies the lines that begin here, each with its line feed, one that is too long cut; returns their bytes."""
    written = 0
    for k in range(starts.shape[0]):
        at = starts[k]
        while text[at] != 10 and at - starts[k] <= LONGEST_LINE:
            out[written] = text[at]
            written += 1
            at += 1
        out[written] = 10
        written += 1
    return written
