"""A data set of one categorical column whose values each have a click rate of their own, and the AUC of counting."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.config import Config
from dqrm_cpu.data.store.manifest import FORMAT, ColumnStatistics, Manifest, write_manifest
from dqrm_cpu.data.store.run_data import follow_data
from dqrm_cpu.data.store.schema import Schema
from dqrm_cpu.data.store.writer import write_shard
from dqrm_cpu.metrics.click import click_metrics
from tiny import tiny_config

SIZES = {"train": 12_000, "validation": 3000, "test": 3000}
LEVELS = 100


def write_click_rates(folder: Path, sizes: dict[str, int] | None = None) -> float:
    """Writes the data set; returns the test AUC of counting clicks and rows of each level in the training rows."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(7)
    rate = 1 / (1 + np.exp(-random.normal(-1, 1.5, LEVELS)))
    schema, parts, rows = Schema(("constant",), ("item",)), {}, {}
    for part, count in (sizes or SIZES).items():
        ids = random.integers(0, LEVELS, (1, count), np.int32)
        label = (random.random(count) < rate[ids[0]]).astype(np.uint8)
        rows[part] = (ids[0], label)
        shard = write_shard(folder, f"{part}.shard", schema, label, np.zeros((count, 1), np.float32), ids)
        parts[part] = (shard,) if count else ()
    columns = (ColumnStatistics("constant"), ColumnStatistics("item"))
    write_manifest(folder, Manifest(FORMAT, schema, (LEVELS,), parts, columns, (), {}, "0"))
    return _counting_auc(rows)


def click_rates_config(folder: Path, **train: Any) -> Config:
    """The settings of a small run over that folder, everything else as it comes."""
    config = tiny_config(train={"batch_size": 32, "test_batch_size": 4096, "epochs": 1, "log_every": 1000, **train})
    return follow_data(replace(config, data=replace(config.data, source=str(folder))), frozenset())


def _counting_auc(rows: dict[str, tuple[NDArray[np.int32], NDArray[np.uint8]]]) -> float:
    ids, label = rows["train"]
    clicks, shown = np.bincount(ids, label, LEVELS), np.bincount(ids, minlength=LEVELS)
    test_ids, test_label = rows["test"]
    predicted = ((clicks + 0.5) / (shown + 1))[test_ids].astype(np.float32)
    return click_metrics(predicted, test_label == 1).auc
