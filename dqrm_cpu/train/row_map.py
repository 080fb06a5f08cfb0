"""Where the rows of a parent's tables go in the tables of a run whose vocabulary is another.

Row numbers may move: a row follows the category that it stands for. Data sets of the same identity, generated ones too,
number alike; one that grew from the parent's, and that no category left, keeps its ids. Of any others, both
vocabularies say which row is whose.
"""

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.config import Config
from dqrm_cpu.data.prepare.vocabulary.saved_vocabulary import (
    SavedVocabulary,
    identity_of_vocabulary,
    vocabulary_of,
)
from dqrm_cpu.data.source import DataSet
from dqrm_cpu.data.store.manifest import Manifest, read_manifest
from dqrm_cpu.data.store.run_data import SYNTHETIC, fingerprint_of
from dqrm_cpu.errors import DataError
from dqrm_cpu.train.parent import ParentCheckpoint

RowMap = NDArray[np.int64]
"""The row of this run's arena for each row of the parent's, int64[N]; -1 where there is none."""

GONE = -1


def map_rows(parent: ParentCheckpoint, config: Config, data: DataSet) -> RowMap:
    """Finds the row that each of the parent's rows has here; DataError where nobody can say."""
    there, here = parent.identity, data.identity
    # The same rows under other categories would have the same fingerprint.
    same = parent.fingerprint == data.fingerprint if there is None or here is None else there == here
    if same:
        return equal_ids(parent.table_rows, config.model.table_rows)
    if config.data.source == SYNTHETIC or parent.settings.values["data.source"] == SYNTHETIC:
        raise DataError(
            f"{parent.path} was trained on {parent.fingerprint or 'other data'}, and the ids of {data.fingerprint} "
            "stand for other categories; leave --seed and --model.table-rows of generated clicks as the run has them, "
            "or train without --init-from"
        )
    if there is not None and here is not None and there.schema != here.schema:
        raise DataError(
            f"{config.data.source} has other columns than the data set that {parent.path} was trained on"
            f"{_columns(parent, config)}; give data of the same columns, or train without --init-from"
        )
    manifest = read_manifest(Path(config.data.source))
    if there is not None and manifest.parent == there and not any(column.evicted for column in manifest.columns):
        return equal_ids(parent.table_rows, config.model.table_rows)  # a vocabulary grows at its end
    return equal_keys(
        _vocabulary_of_parent(parent, config.data.source),
        _vocabulary_in(Path(config.data.source), manifest),
        parent.table_rows,
        config.model.table_rows,
    )


def equal_ids(parent_rows: Sequence[int], rows: Sequence[int]) -> RowMap:
    """Maps rows of the same number, table by table; larger tables have rows that no parent's row goes to."""
    result = np.full(sum(parent_rows), GONE, np.int64)
    for (first, after), (own_first, own_after) in zip(_tables(parent_rows), _tables(rows), strict=True):
        count = min(after - first, own_after - own_first)
        result[first : first + count] = np.arange(own_first, own_first + count)
    return result


def equal_keys(
    parent: SavedVocabulary, own: SavedVocabulary, parent_rows: Sequence[int], rows: Sequence[int]
) -> RowMap:
    """Maps the rows of categories that both vocabularies have, and the reserved row of every table."""
    result = np.full(sum(parent_rows), GONE, np.int64)
    pairs = zip(_tables(parent_rows), _tables(rows), parent.keys, own.keys, strict=True)
    for (first, after), (own_first, own_after), old, new in pairs:
        if old.size >= after - first or new.size >= own_after - own_first:
            raise DataError("a vocabulary has more categories than its table has rows; prepare the data set again")
        result[first] = own_first
        _, at_old, at_new = np.intersect1d(old, new, assume_unique=True, return_indices=True)
        result[first + 1 + at_old] = own_first + 1 + at_new
    return result


def _tables(rows: Sequence[int]) -> list[tuple[int, int]]:
    """Returns the first row of each table in the arena, and the one after its last."""
    ends = list(accumulate(rows))
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _vocabulary_of_parent(parent: ParentCheckpoint, source: str) -> SavedVocabulary:
    """Reads the vocabulary of the data set that the parent was trained on, and makes sure that it is the one."""
    folder = parent.find_data()
    if folder is None:
        raise DataError(
            f"{source} has another vocabulary than {parent.path} was trained with, and the data set of that run, "
            f"{parent.settings.values['data.source']}, is gone: nobody can say which row a category had; put its "
            "folder back (manifest.json and vocabulary are enough)"
        )
    manifest = read_manifest(folder)
    vocabulary = _vocabulary_in(folder, manifest)
    same_rows = parent.fingerprint == fingerprint_of(manifest.digest())
    if identity_of_vocabulary(manifest.schema, vocabulary, manifest.transforms) != parent.identity and not (
        parent.identity is None and same_rows
    ):
        raise DataError(
            f"{folder} is not the data set that {parent.path} was trained on: its vocabulary is another; put that "
            "one back, or train without --init-from"
        )
    return vocabulary


def _vocabulary_in(folder: Path, manifest: Manifest) -> SavedVocabulary:
    try:
        return vocabulary_of(folder, manifest)
    except DataError as error:
        raise DataError(
            f"{error}. Without it nobody can say which category a row stands for: prepare later days with --grow-from "
            "or --vocabulary of the first data set, or train without --init-from"
        ) from None


def _columns(parent: ParentCheckpoint, config: Config) -> str:
    """Names the columns that only one of the two data sets has, where both can be read."""
    folder = parent.find_data()
    if folder is None or config.data.source == SYNTHETIC:
        return ""
    there, here = (_names(read_manifest(place)) for place in (folder, Path(config.data.source)))
    parts = [
        f"{what} {', '.join(missing[:10])}"
        for what, missing in (
            ("without", [name for name in there if name not in here]),
            ("with", [name for name in here if name not in there]),
        )
        if missing
    ]
    same = "in another order" if there != here else "numbers are transformed otherwise"
    return f" ({', '.join(parts) or same})"


def _names(manifest: Manifest) -> list[Any]:
    return [*manifest.schema.dense, *manifest.schema.categorical]
