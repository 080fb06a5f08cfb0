"""Small data sets in a folder, and the plain arrays that they must give back."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.config import Config
from dqrm_cpu.data.batch import Batch
from dqrm_cpu.data.store.follow import follow_data
from dqrm_cpu.data.store.manifest import FORMAT, PART_NAMES, ColumnStatistics, Manifest, ShardFile, write_manifest
from dqrm_cpu.data.store.schema import Schema
from dqrm_cpu.data.store.writer import write_shard
from tiny import tiny_config

SCHEMA = Schema(("d0", "d1", "d2"), ("narrow", "middle", "wide", "single"))
TABLE_ROWS = (256, 65_536, 3_000_000, 1)


class Rows(NamedTuple):
    """n rows as arrays: what a shard is written from."""

    label: NDArray[np.uint8]
    dense: NDArray[np.float32]
    ids: NDArray[np.int32]

    def at(self, rows: NDArray[np.int64] | slice) -> "Rows":
        """Some of them."""
        return Rows(self.label[rows], self.dense[rows], self.ids[:, rows])


def random_rows(count: int, seed: int = 0) -> Rows:
    """Rows whose ids reach the ends of their tables; d0 is the row's own number."""
    random = np.random.default_rng(seed)
    dense = random.random((count, 3), np.float32)
    dense[:, 0] = np.arange(count)
    ids = np.stack([random.integers(0, rows, count, np.int32) for rows in TABLE_ROWS])
    if count:
        ids[:, -1] = np.asarray(TABLE_ROWS) - 1
    return Rows((random.random(count) < 0.25).astype(np.uint8), dense, ids)


def write_data_set(folder: Path, train_shards: list[int], held_out_rows: int = 50) -> Rows:
    """A data set whose training part has shards of these sizes; returns the training rows."""
    train = random_rows(sum(train_shards))
    bounds = np.cumsum([0, *train_shards])
    parts = {
        "train": tuple(
            write_shard(folder, f"train-{k}.shard", SCHEMA, *train.at(slice(first, after)))
            for k, (first, after) in enumerate(pairwise(bounds.tolist()))
        )
    }
    for part in PART_NAMES[1:]:
        parts[part] = (write_shard(folder, f"{part}.shard", SCHEMA, *random_rows(held_out_rows, seed=9)),)
    finish(folder, parts)
    return train


def finish(folder: Path, parts: Mapping[str, tuple[ShardFile, ...]]) -> Manifest:
    """Writes the manifest of these parts."""
    columns = tuple(ColumnStatistics(name) for name in (*SCHEMA.dense, *SCHEMA.categorical))
    manifest = Manifest(FORMAT, SCHEMA, TABLE_ROWS, parts, columns, (), {}, "0")
    write_manifest(folder, manifest)
    return manifest


def random_bags(count: int, seed: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Ids and offsets of bags of 0 to 3 ids, table by table."""
    random = np.random.default_rng(seed)
    sizes = random.integers(0, 4, len(TABLE_ROWS) * count)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
    tables = np.repeat(np.repeat(np.asarray(TABLE_ROWS), count), sizes)
    return random.integers(0, tables).astype(np.int32), offsets


def config_of(folder: Path, batch_size: int = 32, **data: object) -> Config:
    """A run over that folder, everything that the data decide left to them."""
    config = tiny_config(train={"batch_size": batch_size})
    return follow_data(
        replace(config, data=replace(config.data, source=str(folder), **data)), frozenset(f"data.{key}" for key in data)
    )


def same_rows(batch: Batch, rows: Rows) -> bool:
    """Whether a batch holds exactly these rows, in this order."""
    return (
        np.array_equal(batch.label.numpy(), rows.label)
        and np.array_equal(batch.dense.numpy(), rows.dense)
        and np.array_equal(batch.ids.numpy(), rows.ids)
    )
