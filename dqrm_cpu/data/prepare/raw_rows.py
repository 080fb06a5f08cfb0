"""Raw rows as a model takes them: parsed as `prepare` does, with the ids of a data set, block after block in order."""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO, Generic, NamedTuple, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.data.prepare.bad_rows import MOST_SHOWN, BadRowAdvice, BadRows, describe
from dqrm_cpu.data.prepare.buffers import MemoryBlock, RowBuffers, zeros
from dqrm_cpu.data.prepare.estimate import estimate_text_bytes, num_text_buffers, rows_bytes
from dqrm_cpu.data.prepare.parse.key_cells import KeyCells
from dqrm_cpu.data.prepare.parse.parser import ParsedBlock
from dqrm_cpu.data.prepare.recorded_layout import column_layout, recorded_layout, text_layout
from dqrm_cpu.data.prepare.request import VocabularySettings
from dqrm_cpu.data.prepare.row_layout import Layout
from dqrm_cpu.data.prepare.scan import are_parquet, import_kernels, new_parquet_reader, new_parser
from dqrm_cpu.data.prepare.sources.raw_file import RawFile, SourcePosition
from dqrm_cpu.data.prepare.sources.text_blocks import TextBlockReader, text_buffer_bytes
from dqrm_cpu.data.prepare.sources.text_stream import PeekedInput, first_lines
from dqrm_cpu.data.prepare.transforms import RecordTransforms
from dqrm_cpu.data.prepare.vocabulary.saved_vocabulary import require_hashing, vocabulary_of
from dqrm_cpu.data.prepare.vocabulary.vocabulary import Categories, MemoryLimit
from dqrm_cpu.data.store.manifest import Manifest
from dqrm_cpu.errors import DataError

_BLOCK_BYTES = 4 << 20
_ADVICE = BadRowAdvice(
    "--bad-rows skip goes on without such rows, --bad-rows quarantine keeps them in a file beside the predictions",
    "are these rows of the kind that the model was trained on? Raise --max-bad-rows if they are expected",
)


Made = TypeVar("Made")


class NumberedRows(NamedTuple):
    """Neighbouring rows; the arrays are used again for those that come next."""

    dense: NDArray[np.float32]  # [n, D], transformed
    ids: NDArray[np.int32]  # [T, n], or [N] table by table where cells have any number of them
    offsets: NDArray[np.int64] | None  # [T * n + 1] of the cells then


class UsedRows(NamedTuple, Generic[Made]):
    """The result that a caller computed from one block of rows, with the keys of these rows."""

    made: Made
    keys: tuple[KeyCells, ...]
    done_bytes: int  # of text, up to the end of these rows
    bad_text: bytes  # the bad lines among them, where they are to be kept


@dataclass
class SkippedRows:
    """The bad rows that were left out."""

    count: int = 0
    first: list[str] = field(default_factory=list)  # some of them, described each
    numbers: dict[str, list[int]] = field(default_factory=dict)
    """The numbers of all of them: lines of a file, from 1, by "FILE, lines"; rows of a data set, from 0, alike."""

    def add(self, place: str, numbers: Sequence[int], described: Sequence[str]) -> None:
        """Adds the bad rows of a block."""
        self.count += len(numbers)
        self.first += described[: MOST_SHOWN - len(self.first)]
        if numbers:
            self.numbers.setdefault(place, []).extend(numbers)


class RawSources:
    """Raw files and what their lines hold: found from the data set of the model, and from how the files begin."""

    def __init__(
        self, files: Sequence[RawFile], directory: Path, manifest: Manifest, keys: Sequence[str] | None, stdin: BinaryIO
    ) -> None:
        """`keys`: the columns to carry along; None: those of the data set's schema."""
        self.stdin = PeekedInput(stdin)
        self.is_parquet = are_parquet(files, "score them apart")
        layouts: dict[str, Layout] = {}
        recorded = recorded_layout(directory, manifest)
        for file in files:
            if self.is_parquet:
                from dqrm_cpu.data.prepare.sources.parquet import column_names  # needs an optional package

                layouts[file.path] = column_layout(recorded, file.path, column_names(file.path), keys)
            elif lines := self.stdin.first_lines() if file.kind == "stdin" else first_lines(file):
                layouts[file.path] = text_layout(recorded, _shown(file), lines, keys)
        if not layouts:
            raise DataError(f"{', '.join(map(_shown, files))}: there is not a single row to score")
        path, self.layout = next(iter(layouts.items()))
        for other, layout in layouts.items():
            if layout != self.layout:
                raise DataError(f"{other} has other columns than {path}; score them apart")
        self.files = tuple(file for file in files if file.path in layouts)
        self.transforms = RecordTransforms(self.layout, manifest.transforms)

    @property
    def total_bytes(self) -> int:
        """The bytes of text of all files; 0 where that is not known."""
        if any(file.kind == "stdin" for file in self.files):
            return 0
        return sum(map(estimate_text_bytes, self.files))


def _shown(file: RawFile) -> str:
    return "standard input" if file.kind == "stdin" else file.path


def load_categories(directory: Path, manifest: Manifest, layout: Layout, workers: int) -> Categories:
    """Loads what gives categories the ids of a data set; id 0 to those that it does not have."""
    names, limit = layout.raw.categorical, MemoryLimit(0, directory, lambda _: None)
    recorded: Any = manifest.settings.get("vocabulary")
    if isinstance(recorded, Mapping) and recorded.get("kind") == "hash":
        rows, modulus = require_hashing(directory, manifest, recorded, layout)
        settings = VocabularySettings("hash", max_ind_range=modulus, hash_rows=rows)
        return Categories(settings, np.dtype("<u8" if layout.has_text else "<u4"), names, limit, workers)
    saved = vocabulary_of(directory, manifest)
    settings = VocabularySettings("given", str(directory), saved.digest, max_ind_range=saved.max_ind_range)
    categories = Categories(settings, saved.keys[0].dtype, names, limit, workers)
    categories.use(list(saved.keys[: len(names)]))
    return categories


class RawRowReader:
    """Reads raw rows once, in the order of their files and lines, in bounded memory."""

    def __init__(self, sources: RawSources, categories: Categories, policy: str, most_bad: int, workers: int) -> None:
        """`policy`: what becomes of bad rows, stop, skip or quarantine; more than `most_bad` are an error."""
        self._sources, self._categories, self._workers = sources, categories, workers
        self._bad_rows = BadRows(policy, most_bad, None, 0, 0, _ADVICE)
        self._parser = new_parser(sources.layout, self._bad_rows, sources.is_parquet)
        self._line = self._finished_bytes = 0
        self.skipped = SkippedRows()
        self.cut: Counter[str] = Counter()  # values beyond the limit of their cell, by column

    def rows(
        self, use: Callable[[NumberedRows], Made], note: Callable[[str], None] = lambda _: None
    ) -> Iterator[UsedRows[Made]]:
        """Yields what `use` makes of the rows of block after block; `note` is told what nobody can check.

        `use` is called on several threads, each with a block that it has parsed: nothing between a block's text and
        what is made of it waits for another one.
        """
        layout, workers = self._sources.layout, self._workers
        spare: SimpleQueue[RowBuffers] = SimpleQueue()
        for _ in range(workers + 2):
            spare.put(RowBuffers(layout, MemoryBlock.of_bytes(rows_bytes(layout, _BLOCK_BYTES))))
        reader = self._new_reader(note)

        def work(block: Any) -> tuple[ParsedBlock, Made]:
            buffers = spare.get()
            parsed = self._parser.parse(block, buffers)
            reader.release(block)
            made = use(self._numbered(parsed))
            spare.put(buffers)
            return parsed, made

        with ThreadPoolExecutor(workers, "dqrm-parse") as pool, reader:
            import_kernels()  # while the first blocks are read
            working: deque[Future[tuple[ParsedBlock, Made]]] = deque()
            blocks = iter(reader)
            while True:
                while len(working) <= workers and (block := next(blocks, None)) is not None:
                    working.append(pool.submit(work, block))
                if not working:
                    return
                yield self._in_order(*working.popleft().result())

    def _new_reader(self, note: Any) -> Any:
        sources = self._sources
        if sources.is_parquet:
            return new_parquet_reader(sources.files, SourcePosition(), _BLOCK_BYTES, sources.layout)
        byte = np.dtype(np.uint8)
        buffers = [zeros(text_buffer_bytes(_BLOCK_BYTES), byte) for _ in range(num_text_buffers(self._workers))]
        stops, stdin = self._bad_rows.most_in_block == 1, cast(BinaryIO, sources.stdin)
        return TextBlockReader(sources.files, SourcePosition(), _BLOCK_BYTES, buffers, stdin, note, stops)

    def _numbered(self, parsed: ParsedBlock) -> NumberedRows:
        """Looks up the ids, on the thread that has parsed the rows."""
        buffers, rows = parsed.buffers, parsed.rows
        keys, ids = parsed.categories
        self._categories.look_up(keys, ids)
        dense, buckets = self._sources.transforms.columns(buffers.dense[:rows])
        if parsed.bags:
            return NumberedRows(dense, np.concatenate([*ids, *buckets]), _offsets(parsed, len(buckets)))
        return NumberedRows(dense, np.stack([*ids, *buckets]) if buckets else buffers.ids[:, :rows], None)

    def _in_order(self, parsed: ParsedBlock, made: Made) -> UsedRows[Made]:
        """Does what must happen in the order of the blocks."""
        block = parsed.block
        path = _shown(self._sources.files[block.after.source])
        offenders = self._bad_rows.take(parsed.bad, parsed.num_bad, parsed.bad_text, path, self._line)
        numbers = (parsed.bad_lines + self._line + 1).tolist()
        self.skipped.add(f"{path}, lines", numbers, [describe(path, offender) for offender in offenders])
        names = self._sources.layout.raw.categorical
        self.cut += Counter({names[t]: bag.cut for t, bag in parsed.bags.items()})
        done = self._finished_bytes + block.after.offset
        self._line = 0 if block.ends_source else self._line + parsed.lines
        self._finished_bytes = done if block.ends_source else self._finished_bytes
        return UsedRows(made, parsed.keys, done, parsed.bad_text)


def _offsets(parsed: ParsedBlock, num_buckets: int) -> NDArray[np.int64]:
    """Returns where the ids of each cell begin, table by table: a cell that is no bag has one."""
    sizes = np.ones((parsed.buffers.num_tables + num_buckets, parsed.rows), np.int64)
    for t, bag in parsed.bags.items():
        sizes[t] = np.diff(bag.offsets)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes.ravel())])
