"""Writes MovieLens-100k as a prepared data set, out of the files that the recbole package ships.

The split is in time: of each user's ratings the oldest 80% are trained on, the next 10% choose, the latest 10% test.
Split at one date for all, six in seven test rows would be of users that training never saw.
"""

import hashlib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import dqrm_cpu
from dqrm_cpu.base.decode import Json
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
from dqrm_cpu.errors import DataError

_SHARES = (0.8, 0.9)
_SHUFFLE_SEED = 1
_SETTINGS: Mapping[str, Json] = {
    "converted_from": "MovieLens-100k",
    "click": "rating of 4 or 5",
    "split": "each user's ratings by time, 80:10:10",
}


def prepared_movielens(folder: Path) -> Path:
    """Returns `folder`, with the data set in it: written now unless it is there already."""
    if not holds_manifest(folder):
        prepare_movielens(installed_files(), folder)
    return folder


def prepare_movielens(files: Mapping[str, Path], folder: Path) -> None:
    """Writes the data set of the three files, inter, item and user, into `folder`."""
    ratings = read_ratings(files)
    folder.mkdir(parents=True, exist_ok=True)
    split = split_rows(ratings.ids[0])
    parts = {
        part: (_shard(ratings.in_order(rows), folder, part),) for part, rows in zip(PART_NAMES, split, strict=True)
    }
    counts = {"inter": ratings.label.size}
    write_manifest(
        folder,
        Manifest(
            format=FORMAT,
            schema=SCHEMA,
            table_rows=ratings.table_rows,
            parts=parts,
            columns=tuple(map(ColumnStatistics, (*SCHEMA.dense, *SCHEMA.categorical))),
            sources=tuple(_source(path, counts.get(kind, 0)) for kind, path in files.items()),
            settings=_SETTINGS,
            version=dqrm_cpu.__version__,
        ),
    )


def split_rows(user: NDArray[np.int32]) -> tuple[NDArray[np.int64], ...]:
    """Returns rows to train on, to validate and to test, out of rows that are sorted by time."""
    by_user = np.argsort(user, kind="stable")
    counts = np.bincount(user)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    share = np.empty(user.size)
    share[by_user] = (np.arange(user.size) - first) / np.repeat(counts, counts)
    parts = [np.flatnonzero(np.digitize(share, _SHARES) == part) for part in range(len(PART_NAMES))]
    # Users rate in one sitting: in the order of time a batch would be a few users' only.
    np.random.default_rng(_SHUFFLE_SEED).shuffle(parts[0])
    return tuple(parts)


def _shard(ratings: Ratings, folder: Path, part: str) -> ShardFile:
    ids, offsets = ratings.bags()
    return write_bags(folder, f"{part}-00000.shard", SCHEMA, ratings.label, ratings.dense, ids, offsets)


def _source(path: Path, rows: int) -> SourceFile:
    content = path.read_bytes()
    return SourceFile(path.name, len(content), f"sha256:{hashlib.sha256(content).hexdigest()}", rows)


_PACKAGE = "recbole"
_INSTALL = f"pip install --no-deps {_PACKAGE}==1.2.1"
_FOLDER = "recbole/dataset_example/ml-100k"
KINDS = ("inter", "item", "user")


def installed_files() -> dict[str, Path]:
    """Finds ml-100k.inter, .item and .user, by their kind.

    Nothing of the package is imported: what it requires need not be there.
    """
    try:
        package = distribution(_PACKAGE)
    except PackageNotFoundError:
        raise DataError(
            f"MovieLens-100k comes with the package {_PACKAGE}, which is not installed; run {_INSTALL}"
        ) from None
    return files_in(Path(str(package.locate_file(_FOLDER))))


def files_in(folder: Path) -> dict[str, Path]:
    """Returns the three files in a folder, by their kind."""
    paths = {kind: folder / f"ml-100k.{kind}" for kind in KINDS}
    for path in paths.values():
        if not path.is_file():
            raise DataError(f"{path} is not there; install {_PACKAGE} again: {_INSTALL} --force-reinstall")
    return paths
