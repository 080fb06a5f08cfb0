"""A prepared data set once more, with rows for the common categories alone: what `prepare --min-count K` had made.

It lies in a folder of the data set, with a vocabulary and a history of its own; rows stay in their order.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.base.files import remove_leftovers
from dqrm_cpu.base.lock import FolderLock
from dqrm_cpu.base.memory import format_size
from dqrm_cpu.data.common_ids import CommonIds, id_counts
from dqrm_cpu.data.prepare.output.admission import ColumnCells, admit_column
from dqrm_cpu.data.prepare.output.rare import CellCounts, IdRemap, keep_only
from dqrm_cpu.data.prepare.request import VocabularySettings
from dqrm_cpu.data.prepare.vocabulary.history import ColumnHistory, History, history_of_nothing
from dqrm_cpu.data.prepare.vocabulary.saved_vocabulary import (
    SavedVocabulary,
    identity_of_vocabulary,
    save_vocabulary,
    vocabulary_of,
)
from dqrm_cpu.data.source import Part
from dqrm_cpu.data.store.layout import BLOCK_ROWS
from dqrm_cpu.data.store.manifest import (
    PART_NAMES,
    Manifest,
    ShardFile,
    holds_manifest,
    read_manifest,
    write_manifest,
)
from dqrm_cpu.data.store.stored_rows import StoredRows
from dqrm_cpu.data.store.writer import BagBlock, RowBlock, block_of, write_blocks
from dqrm_cpu.errors import DataError

_OF = "recounted_from"

Advance = Callable[[int], object]
"""Hears of rows that were counted or written; what it raises ends the work."""


def why_fixed(manifest: Manifest) -> str:
    """Says why the rows of a data set's tables are not chosen anew by count; empty where they can be."""
    settings = manifest.settings.get("vocabulary")
    if not isinstance(settings, dict):
        return "it was numbered by another program"
    if settings.get("kind") != "exact":
        return "its vocabulary belongs to other data sets too, or to none"
    if _OF in manifest.settings or settings.get("min_count", 1) > 1:
        return f"it was prepared with a min-count of {settings.get('min_count')}"
    return ""


def counted_folder(directory: Path, min_count: int) -> Path:
    """Returns where the data set lies whose categories min_count training rows have, of the one in `directory`."""
    return directory / f"min-count-{min_count}"


def recount(directory: Path, min_count: int, advance: Advance = lambda rows: None) -> Path:
    """Writes the data set of a min_count into a folder of `directory`, unless it is there, and returns that folder.

    `advance` hears of every row twice. Whatever ends it, the same call begins anew; the manifest is written last.
    """
    manifest, out = read_manifest(directory), counted_folder(directory, min_count)
    reason = why_fixed(manifest)
    if reason:
        raise DataError(f"the rows of {directory} are not chosen by count: {reason}; leave out --data.min-count")
    if holds_manifest(out):
        if read_manifest(out).settings.get(_OF) != manifest.digest():
            raise DataError(f"{out} was made of other rows than {directory} has; remove it, and it is made again")
        return out
    with _sole_writer(out, manifest):
        if not holds_manifest(out):
            _Recount(directory, manifest, min_count, out, advance).write()
    return out


class _Recount:
    """The data set that is read, and the one that is made of it."""

    def __init__(self, directory: Path, manifest: Manifest, min_count: int, out: Path, advance: Advance) -> None:
        self._manifest, self._out, self._advance = manifest, out, advance
        self._vocabulary = vocabulary_of(directory, manifest)
        self._parts = {
            name: Part(StoredRows(directory, manifest, name), 0, manifest.num_rows(name)) for name in PART_NAMES
        }
        settings = manifest.settings["vocabulary"]
        self._settings = VocabularySettings(min_count=min_count, max_ind_range=settings.get("max_ind_range", 0))
        # Columns of numbers that were made categories come last, and keep their rows.
        counted = [column.distinct is not None for column in manifest.columns[manifest.schema.num_dense :]]
        self._num_counted = counted.index(False) if False in counted else len(counted)

    def write(self) -> None:
        """Writes shards, vocabulary and manifest."""
        remap, history = self._admitted()
        keys = [remap.kept(t, column) for t, column in enumerate(self._vocabulary.keys)]
        shards = {name: tuple(self._shards(name, remap)) for name in PART_NAMES}
        schema, before = self._manifest.schema, self._manifest
        save_vocabulary(self._out, schema.categorical, self._settings.max_ind_range, keys, history)
        saved = SavedVocabulary(schema.categorical, self._settings.max_ind_range, tuple(keys), "")
        vocabulary = {**before.settings["vocabulary"], "min_count": self._settings.min_count}
        settings = {**before.settings, "vocabulary": vocabulary, _OF: before.digest()}
        settings.pop("request", None)
        num_dense = schema.num_dense
        columns = list(before.columns)
        for t, of_column in enumerate(history.columns):
            columns[num_dense + t] = replace(
                columns[num_dense + t], rare=remap.rare_cells[t], waiting=of_column.waiting.size
            )
        write_manifest(
            self._out,
            replace(
                before,
                table_rows=tuple(1 + int(column.size) for column in keys),
                parts=shards,
                columns=tuple(columns),
                settings=settings,
                identity=identity_of_vocabulary(schema, saved, before.transforms),
            ),
        )

    def _admitted(self) -> tuple[IdRemap, History]:
        """Decides which ids keep a row, as a first data set does."""
        table_rows, keys = self._manifest.table_rows, self._vocabulary.keys
        train, *others = (id_counts(part, table_rows, part.num_rows, self._advance) for part in self._parts.values())
        held_out = [sum(counts, np.zeros_like(counts[0])) for counts in zip(*others, strict=True)]
        sizes = [0] * self._num_counted
        nothing = history_of_nothing(sizes, keys[0].dtype, 0).columns
        kept: list[NDArray[np.bool_]] = []
        columns: list[ColumnHistory] = []
        for before, of_column, in_train, in_others in zip(nothing, keys, train, held_out, strict=False):
            cells = ColumnCells(of_column, in_train, in_others, np.empty(0, np.int32))
            keep, after = admit_column(cells, before, 1, self._settings)
            kept.append(keep)
            columns.append(after)
        kept += [np.ones(rows, np.bool_) for rows in table_rows[self._num_counted :]]
        starts = np.cumsum([0, *table_rows])
        counts = CellCounts(starts, *(np.concatenate(part).astype(np.uint32) for part in (train, held_out)))
        return keep_only(counts, kept), History(1, tuple(columns))

    def _shards(self, part: str, remap: IdRemap) -> Iterator[ShardFile]:
        """Writes the shards of a part, each with the rows that it has."""
        source = self._parts[part].source
        assert isinstance(source, StoredRows)
        num_tables, first = source.num_tables, 0
        mapped = CommonIds(source, _by_table(remap, self._manifest.table_rows))
        for shard in self._manifest.parts[part]:
            bounds = [*range(first, first + shard.rows, BLOCK_ROWS), first + shard.rows]
            largest = np.zeros(num_tables, np.int32)
            for low, high in pairwise(bounds):
                for t, ids in enumerate(mapped.rows(low, high).ids_by_table(num_tables)):
                    largest[t] = max(int(largest[t]), int(ids.max(initial=0)))
            blocks = (self._block(mapped, low, high) for low, high in pairwise(bounds))
            path = self._out / shard.name
            yield write_blocks(path, self._manifest.schema, shard.rows, largest, blocks, bags=source.bags)
            first += shard.rows

    def _block(self, source: CommonIds, low: int, high: int) -> RowBlock | BagBlock:
        batch = source.rows(low, high)
        self._advance(batch.size)
        return block_of(batch)


def _by_table(remap: IdRemap, table_rows: Sequence[int]) -> list[NDArray[Any]]:
    if remap.new_id is None:
        return [np.arange(rows, dtype=np.int32) for rows in table_rows]
    return np.split(remap.new_id, remap.starts[1:-1])


@contextmanager
def _sole_writer(out: Path, manifest: Manifest) -> Iterator[None]:
    """Makes the folder and keeps others from writing to it; DataError where there is no room."""
    need = sum(shard.bytes for shards in manifest.parts.values() for shard in shards)
    try:
        free = shutil.disk_usage(out.parent).free
        if need > free:
            raise DataError(
                f"{out} needs {format_size(need)} and {format_size(free)} are free there; make room, or prepare the "
                "log with --min-count"
            )
        out.mkdir(exist_ok=True)
        with FolderLock(out, ".lock", f"another command writes {out}; wait until it has ended", DataError):
            remove_leftovers(out)
            yield
    except OSError as error:
        raise DataError(
            f"{out} cannot be written ({error.strerror or error}); allow it, or prepare the log with --min-count"
        ) from error
