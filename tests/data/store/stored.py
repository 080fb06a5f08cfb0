"""Small data sets in a folder, and the plain arrays that they must give back."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.config import Config
from dqrm_cpu.data.batch import Batch
from dqrm_cpu.data.store.manifest import FORMAT, PART_NAMES, ColumnStatistics, Manifest, ShardFile, write_manifest
from dqrm_cpu.data.store.run_data import follow_data
from dqrm_cpu.data.store.schema import Schema
from dqrm_cpu.data.store.writer import write_bags, write_shard
from dqrm_cpu.data.synthetic.stream import SyntheticClicks
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


def write_generated(
    folder: Path,
    tables: tuple[int, ...],
    num_rows: Mapping[str, int],
    max_bag_size: int = 1,
    every: int = 1,
    weights: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None = None,
) -> None:
    """Writes rows that `--data synthetic` makes from seed 3, so many of each part.

    `every`: the parts follow one another so many times, for parts that are alike although the clicks change with time.
    `weights`: what makes weights f32[n] of dense values f32[n, 13]; None: rows have none.
    """
    source = SyntheticClicks(tables, 13, seed=3, max_bag_size=max_bag_size)
    name_of_weights = "w" if weights else ""
    dense_names = (*(f"I{k}" for k in range(13)), *([name_of_weights] if weights else []))
    schema = Schema(dense_names, tuple(f"C{k}" for k in range(len(tables))), name_of_weights)
    parts: dict[str, tuple[ShardFile, ...]] = dict.fromkeys(PART_NAMES, ())
    start = 0
    for turn in range(every):
        for part in PART_NAMES:
            name, count = f"{part}-{turn}.shard" if turn else f"{part}.shard", num_rows[part] // every
            batch = source.rows(start, start + count)
            start += count
            dense = batch.dense.numpy()
            stored = np.column_stack([dense, weights(dense)]) if weights else dense
            arrays = batch.label.numpy().astype(np.uint8), stored, batch.ids.numpy()
            if batch.offsets is None:
                parts[part] += (write_shard(folder, name, schema, *arrays),)
            else:
                parts[part] += (write_bags(folder, name, schema, *arrays, batch.offsets.numpy()),)
    columns = tuple(ColumnStatistics(name) for name in (*schema.dense, *schema.categorical))
    write_manifest(folder, Manifest(FORMAT, schema, tables, parts, columns, (), {}, "0"))


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


def config_of(folder: Path, batch_size: int = 32, **data: Any) -> Config:
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
