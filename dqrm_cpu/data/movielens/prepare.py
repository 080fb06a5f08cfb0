"""Writes MovieLens-100k as a prepared data set: the first 80% in time to train, then 10% to validate, 10% to test."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import dqrm_cpu
from dqrm_cpu.data.movielens.files import installed_files
from dqrm_cpu.data.movielens.ratings import SCHEMA, Ratings, read_ratings
from dqrm_cpu.data.store.manifest import (
    FORMAT,
    PART_NAMES,
    ColumnStatistics,
    Manifest,
    ShardFile,
    SourceFile,
    holds_manifest,
    write_manifest,
)
from dqrm_cpu.data.store.writer import write_bags

_SHARES = (0.8, 0.9)


def prepared_movielens(folder: Path) -> Path:
    """The data set in `folder`, written now unless it is there already."""
    if not holds_manifest(folder):
        prepare_movielens(installed_files(), folder)
    return folder


def prepare_movielens(files: Mapping[str, Path], folder: Path) -> None:
    """`files` has inter, item and user."""
    ratings = read_ratings(files)
    folder.mkdir(parents=True, exist_ok=True)
    rows = ratings.label.size
    bounds = (0, *(int(rows * share) for share in _SHARES), rows)
    parts = {part: (_shard(ratings, folder, part, bounds[k], bounds[k + 1]),) for k, part in enumerate(PART_NAMES)}
    write_manifest(
        folder,
        Manifest(
            format=FORMAT,
            schema=SCHEMA,
            table_rows=ratings.table_rows,
            parts=parts,
            columns=tuple(map(ColumnStatistics, (*SCHEMA.dense, *SCHEMA.categorical))),
            sources=tuple(_source(path, rows if kind == "inter" else 0) for kind, path in files.items()),
            settings={"converted_from": "MovieLens-100k", "click": "rating of 4 or 5", "split": "by time, 80:10:10"},
            version=dqrm_cpu.__version__,
        ),
    )


def _shard(ratings: Ratings, folder: Path, part: str, first: int, stop: int) -> ShardFile:
    ids, offsets = ratings.part(first, stop)
    rows = slice(first, stop)
    return write_bags(folder, f"{part}-00000.shard", SCHEMA, ratings.label[rows], ratings.dense[rows], ids, offsets)


def _source(path: Path, rows: int) -> SourceFile:
    content = path.read_bytes()
    return SourceFile(path.name, len(content), f"sha256:{hashlib.sha256(content).hexdigest()}", rows)
