"""An exported model of any size without training: a configuration's shape, codes and vocabulary drawn at random."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dqrm_cpu.config import Config
from dqrm_cpu.data.prepare.row_layout import CRITEO_LAYOUT
from dqrm_cpu.export.features import RawFeatures, describe
from dqrm_cpu.export.model_files import layers_of_model
from dqrm_cpu.export.safetensors_writer import Streamed, whole, write_tensors
from dqrm_cpu.kernels.select import select_kernels
from dqrm_cpu.lab.bench.harness.batch_pool import scatter, zipf_ranks
from dqrm_cpu.model.dlrm import Dlrm
from dqrm_cpu.model.size import packed_row_bytes
from dqrm_cpu.serving.description import MODEL, IdRule
from dqrm_cpu.serving.ids import keys_tensors
from dqrm_cpu.serving.model import SINGLE

_ROWS_AT_ONCE = 1 << 20
_CPU = torch.device("cpu")
_STEP = 0.01
_KEY_BITS = 32


def write_random_model(path: Path, config: Config, seed: int = 1) -> int:
    """Writes a model of Criteo's columns that knows a hash for every row of its tables; returns its bytes."""
    generator = np.random.default_rng(seed)
    table_rows, quant = config.model.table_rows, config.quant
    features = RawFeatures(CRITEO_LAYOUT, (), IdRule(_KEY_BITS))
    description = describe(config, "dense", features)
    small = replace(config, model=replace(config.model, table_rows=(2,) * len(table_rows)))
    model = Dlrm(small, select_kernels("auto", _CPU), _CPU)
    model.initialize_(seed)

    tensors = []
    for t, (rows, dim) in enumerate(zip(table_rows, config.model.dims, strict=True)):
        shape = (rows, packed_row_bytes(dim, quant.embedding_bits))
        tensors.append(Streamed(f"C{t + 1}.codes", "uint8", shape, partial(_random_bytes, generator, *shape)))
    tensors.append(whole("tables.step", np.full(len(table_rows), _STEP, np.float32)))
    tensors += layers_of_model(model).tensors()
    for (keys, rows_of_keys), rows in zip(keys_tensors(description).values(), table_rows, strict=True):
        tensors.append(whole(keys, key_of(np.arange(rows - 1), rows).astype(np.uint32)))
        tensors.append(whole(rows_of_keys, np.arange(1, rows, dtype=np.int32)))
    metadata = {"format": SINGLE, "layout": "dense", "identity": "", "config": config.to_toml()}
    return write_tensors(path, tensors, metadata | {MODEL: description.to_json()})


def _random_bytes(generator: np.random.Generator, rows: int, row_bytes: int) -> Iterator[NDArray[np.generic]]:
    for first in range(0, rows, _ROWS_AT_ONCE):
        count = min(rows - first, _ROWS_AT_ONCE)
        yield np.frombuffer(generator.bytes(count * row_bytes), np.uint8).reshape(count, row_bytes)


def key_of(number: NDArray[np.int64], rows: int) -> NDArray[np.int64]:
    """Returns the hash of a table's categories 0, 1, ..., which rise: as far apart as 32 bits let them."""
    return (1 + number) * ((1 << _KEY_BITS) // rows - 1)


def random_rows(config: Config, count: int, seed: int) -> list[dict[str, Any]]:
    """Draws rows as a log has them: counts, some of them missing, and hashes whose frequencies follow Zipf's law."""
    generator = np.random.default_rng(seed)
    schema = CRITEO_LAYOUT.schema
    columns: dict[str, list[Any]] = {}
    for name in schema.features:
        counts = np.exp(2 * generator.standard_normal(count)).astype(np.int64)
        columns[name] = [
            None if missing else value
            for value, missing in zip(counts.tolist(), generator.random(count) < 0.1, strict=True)
        ]
    for name, rows in zip(schema.categorical, config.model.table_rows, strict=True):
        numbers = scatter(zipf_ranks(rows - 1, generator.random(count)), rows - 1)
        columns[name] = [f"{key:08x}" for key in key_of(numbers, rows).tolist()]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
