"""Packed files of a model that is in memory, as training has it: with how many rows of it are alive, or row-wise."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dqrm_cpu.config import Config
from dqrm_cpu.errors import ConfigError
from dqrm_cpu.export.features import RawFeatures
from dqrm_cpu.export.packed_layout import ROWS_PER_RANK, ROWWISE_BITS, ROWWISE_SCALE_BYTES
from dqrm_cpu.export.read import require_same_tables
from dqrm_cpu.export.rowwise import pack_rows
from dqrm_cpu.export.safetensors_writer import Streamed, write_tensors
from dqrm_cpu.export.write import (
    PackedLayer,
    PackedLayers,
    PackedWeights,
    file_metadata,
    has_sparse_layout,
    packed_path,
    rows_at_once,
    write_models,
)
from dqrm_cpu.kernels.master_rows import blocks_of_values, dim_of
from dqrm_cpu.model.dlrm import Dlrm
from dqrm_cpu.model.shapes import table_names
from dqrm_cpu.model.size import model_bytes, packed_row_bytes
from dqrm_cpu.quant.liveness import RowCounts, count_rows

_FLOAT_BYTES = _RANK_BYTES = 4


@dataclass(frozen=True)
class PackedFiles:
    """Bytes of the files as they lie on the disk, and what the tables in them are made of."""

    dense: int
    sparse: int | None  # None: the method has no zero, so no row is dead
    rows: RowCounts | None = None  # None: the weights with which training began are not known
    # Of a model whose tables have no rows but those that training updated: its bytes in FP32, and of its sparse file.
    updated_fp32: int | None = None
    updated_sparse: int | None = None


PASSES_TO_PACK = 6
"""How often `pack_model` goes through all rows of the tables, where it does all that it can."""


def pack_model(
    folder: Path,
    config: Config,
    model: Dlrm,
    scale: Tensor,
    identity: str = "",
    advance: Callable[[int], object] = lambda _: None,
) -> PackedFiles:
    """Writes FOLDER/dense.safetensors and FOLDER/sparse.safetensors; scale f32[T] of the tables.

    `advance` hears of passes over the tables.
    """
    layouts = ["dense", "sparse"] if has_sparse_layout(model.table_formula) else ["dense"]
    sizes = {}
    for layout in layouts:
        path = packed_path(folder, layout)
        sizes[layout] = write_model(path, config, model, scale, layout, identity)
        advance(1 if layout == "dense" else 2)  # which rows are zero is found before
        require_same_tables(path, model, scale, config.quant)
        advance(1)
    if model.seed is None or model.table_formula is None:
        return PackedFiles(sizes["dense"], sizes.get("sparse"))
    counts = count_rows(model.table_formula, model.groups, scale, model.first_rows)
    advance(1)
    return _with_counts(PackedFiles(sizes["dense"], sizes.get("sparse")), config, counts)


def _with_counts(files: PackedFiles, config: Config, by_table: Sequence[RowCounts]) -> PackedFiles:
    """Adds counts of rows, and sizes without those that training never updated, in FP32 and in the sparse file."""
    dims, counts = config.model.dims, sum(by_table[1:], start=by_table[0])
    never = sum(table.never_updated * dim for table, dim in zip(by_table, dims, strict=True))
    fp32 = model_bytes(config).fp32 - never * _FLOAT_BYTES
    files = replace(files, rows=counts)
    if files.sparse is None:
        return replace(files, updated_fp32=fp32)
    codes = sum(
        (table.live - table.live_updated) * packed_row_bytes(dim, config.quant.embedding_bits)
        for table, dim in zip(by_table, dims, strict=True)
    )
    places = counts.never_updated // 8 + counts.never_updated // ROWS_PER_RANK * _RANK_BYTES
    return replace(files, updated_fp32=fp32, updated_sparse=files.sparse - codes - places)


def write_model(
    path: Path,
    config: Config,
    model: Dlrm,
    scale: Tensor,
    layout: str,
    identity: str = "",
    features: RawFeatures | None = None,
) -> int:
    """Writes one file, its layout dense or sparse; scale f32[T] of the tables. Returns the bytes of the file.

    `identity`: that of the data's schema and vocabulary, as a run records it; empty where it is not known. With
    `features` the file can score raw rows by itself.
    """
    return write_models(path, config, [weights_of_model(model, scale)], layout, identity, features)


class _InMemory(NamedTuple):
    weight: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight.shape[0], dim_of(self.weight)

    def blocks(self, most_rows: int) -> Iterator[NDArray[np.float32]]:
        for part in blocks_of_values(self.weight, most_rows):
            yield part.cpu().numpy()


def weights_of_model(model: Dlrm, scale: Tensor) -> PackedWeights:
    """Returns a model as it is written, of which nothing is copied that lies on the CPU; scale f32[T] of the tables."""
    return PackedWeights(
        tables=[_InMemory(weight) for weight in model.groups.weights],
        formula=model.table_formula,
        scale=scale.cpu().numpy(),
        layers=layers_of_model(model),
    )


def layers_of_model(model: Dlrm) -> PackedLayers:
    """Returns the layers of a model as they are written."""
    return PackedLayers(
        [
            PackedLayer(
                name,
                layer.weight.cpu().numpy(),
                layer.bias.cpu().numpy(),
                None if quantized is None else (quantized[0], quantized[1].cpu().numpy()),
            )
            for name, layer, quantized in model.mlp_layers()
        ],
        model.bias_formula,
        model.inputs.running.cpu().numpy(),
        model.logit_correction(),
    )


def write_rowwise(path: Path, config: Config, model: Dlrm, identity: str = "") -> int:
    """Writes tables row-wise, MLPs as the configuration's method has them; returns the bytes of the file."""
    bits, weights = config.quant.embedding_bits, model.groups.weights
    for dim in {weight.shape[1] for weight in weights}:
        if bits not in ROWWISE_BITS or dim * bits % 8:
            raise ConfigError(
                f"row-wise quantization has {bits} bits and {dim} values a row; it takes 2 or 4 bits and whole bytes: "
                "set quant.embedding_bits to 2 or 4"
            )
    names = table_names(len(weights))
    tables = [_rowwise_table(name, weight, bits) for name, weight in zip(names, weights, strict=True)]
    return write_tensors(path, [*tables, *layers_of_model(model).tensors()], file_metadata(config, "rowwise", identity))


def _rowwise_table(name: str, weight: Tensor, bits: int) -> Streamed:
    def parts() -> Iterator[NDArray[np.generic]]:
        for part in torch.split(weight, rows_at_once(weight.shape[1])):
            yield pack_rows(part.cpu().contiguous(), bits).numpy()

    row_bytes = packed_row_bytes(weight.shape[1], bits) + ROWWISE_SCALE_BYTES
    return Streamed(f"{name}.codes", "uint8", (weight.shape[0], row_bytes), parts)
