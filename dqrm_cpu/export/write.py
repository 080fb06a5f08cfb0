"""Writes a trained model as packed files: codes, what they mean, the MLPs, the configuration.

`dense` holds the codes of every row. `sparse` holds those of live rows (any code that is not 0) alone, a bit for each
row that says whether it lives, and for every 512 rows how many live ones came before, so that a reader finds a row's
codes without scanning. `rowwise` is the baseline of `codes.pack_rows`. docs/quantization.md lists the tensors.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dqrm_cpu.config import Config
from dqrm_cpu.errors import ConfigError
from dqrm_cpu.export.codes import ROWWISE_BITS, ROWWISE_SCALE_BYTES, pack_codes, pack_rows
from dqrm_cpu.export.features import RawFeatures, describe, vocabulary_tensors
from dqrm_cpu.export.packed_layout import CORRECTED, FORMATS, ROWS_PER_RANK
from dqrm_cpu.export.read import require_same_tables
from dqrm_cpu.export.safetensors_writer import Streamed, whole, write_tensors
from dqrm_cpu.kernels.interface import Kernels
from dqrm_cpu.kernels.master_rows import blocks_of_values, dim_of
from dqrm_cpu.model.dlrm import Dlrm
from dqrm_cpu.model.size import model_bytes, packed_row_bytes
from dqrm_cpu.model.tables import table_names
from dqrm_cpu.quant.formula import Formula
from dqrm_cpu.quant.liveness import RowCounts, count_rows
from dqrm_cpu.serving.description import MODEL, member_tensor
from dqrm_cpu.serving.model import ENSEMBLE, SINGLE

_FLOAT_BYTES = _RANK_BYTES = 4
_BLOCK_BYTES = 4 << 20
"""Of weights that are turned into codes at a time: with all that comes of them some 30 MB."""


def rows_at_once(dim: int) -> int:
    """Returns how many rows f32[dim] to work on at a time."""
    return max(1, _BLOCK_BYTES // (_FLOAT_BYTES * dim))


class TableRows(Protocol):
    """The weights of a table, wherever they are."""

    @property
    def shape(self) -> tuple[int, int]:
        """Its rows, and the values of a row."""

    def blocks(self, most_rows: int) -> Iterator[Tensor]:
        """Yields f32[n, D], all rows in their order, so many at once at most."""


class _InMemory(NamedTuple):
    weight: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight.shape[0], dim_of(self.weight)

    def blocks(self, most_rows: int) -> Iterator[Tensor]:
        yield from blocks_of_values(self.weight, most_rows)


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
    layouts = ["dense", "sparse"] if has_sparse_layout(model) else ["dense"]
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


def packed_path(folder: Path, layout: str) -> Path:
    """Returns where a layout's file lies."""
    return folder / f"{layout}.safetensors"


def write_model(
    path: Path,
    config: Config,
    model: Dlrm,
    scale: Tensor,
    layout: str,
    identity: str = "",
    features: RawFeatures | None = None,
    tables: Sequence[TableRows] | None = None,
) -> int:
    """Writes one file, its layout dense or sparse; scale f32[T] of the tables. Returns the bytes of the file.

    `tables`: their weights, where those of the model are not in memory.
    `identity`: that of the data's schema and vocabulary, as a run records it; empty where it is not known. With
    `features` the file can score raw rows by itself.
    """
    return write_models(path, config, [PackedWeights(model, scale, tables)], layout, identity, features)


class PackedWeights(NamedTuple):
    """A model to write; `tables`: their weights, where those of the model are not in memory."""

    model: Dlrm
    scale: Tensor  # f32[T] of the tables
    tables: Sequence[TableRows] | None = None

    def tensors(self, layout: str) -> list[Streamed]:
        """Returns codes and layers by the names of a single model."""
        model, scale, formula = self.model, self.scale, self.model.table_formula
        assert formula is not None, "an FP32 model has no codes"
        tensors: list[Streamed] = []
        rows = [_InMemory(weight) for weight in model.groups.weights] if self.tables is None else self.tables
        for name, weights, of_table in zip(table_names(len(scale)), rows, scale, strict=True):
            table = _Table(name, weights, formula, of_table.view(1, 1), model.kernels)
            tensors += table.sparse() if layout == "sparse" else table.dense()
        return [*tensors, *_grid("tables", formula, scale), *mlp_tensors(model)]


def write_models(
    path: Path,
    config: Config,
    members: Sequence[PackedWeights],
    layout: str,
    identity: str = "",
    features: RawFeatures | None = None,
) -> int:
    """Does what `write_model` does for an ensemble, whose members share vocabulary and features; or for one model."""
    assert features is not None or len(members) == 1, "only a file with features says how many members it has"
    tensors = [
        replace(tensor, name=member_tensor(number, tensor.name))
        for number, weights in enumerate(members, 1)
        for tensor in weights.tensors(layout)
    ]
    metadata = _metadata(config, layout, identity)
    if features is not None:
        description = replace(describe(config, layout, features), members=len(members))
        tensors += vocabulary_tensors(description, features)
        metadata |= {"format": SINGLE if len(members) == 1 else ENSEMBLE, MODEL: description.to_json()}
    return write_tensors(path, tensors, metadata)


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
    return write_tensors(path, [*tables, *mlp_tensors(model)], _metadata(config, "rowwise", identity))


def _metadata(config: Config, layout: str, identity: str) -> dict[str, str]:
    """Returns what a reader must know before the tensors."""
    corrected = {CORRECTED: "true"} if config.data.trained_keep_rate < 1 else {}
    version = FORMATS[3] if config.model.table_dims else FORMATS[1]  # earlier versions read what they can
    return {"format": version, "layout": layout, "identity": identity, "config": config.to_toml(), **corrected}


def has_sparse_layout(model: Dlrm) -> bool:
    """Tells whether code 0 is exactly 0, so that rows can be left out."""
    formula = model.table_formula
    return formula is not None and formula.grid(torch.ones(1)).offset is None


class _Table(NamedTuple):
    name: str
    weights: TableRows
    formula: Formula
    scale: Tensor
    kernels: Kernels

    def dense(self) -> list[Streamed]:
        return [self._codes(self.weights.shape[0], lambda: self._packed(None))]

    def sparse(self) -> list[Streamed]:
        alive = self._alive()
        live_rows = np.add.reduceat(alive, np.arange(0, len(alive), ROWS_PER_RANK), dtype=np.int32)
        before = np.cumsum(live_rows, dtype=np.int32) - live_rows
        bitmap = np.packbits(alive, bitorder="little")
        codes = self._codes(int(alive.sum()), lambda: self._packed(alive))
        return [whole(f"{self.name}.bitmap", bitmap), whole(f"{self.name}.rank", before), codes]

    def _alive(self) -> NDArray[np.bool_]:
        # Filled in place: small arrays between large ones that come and go would keep holes in the heap.
        alive, first = np.empty(self.weights.shape[0], dtype=np.bool_), 0
        for codes in self._all_codes():
            alive[first : first + len(codes)] = (codes != 0).any(1).cpu().numpy()
            first += len(codes)
        return alive

    def _codes(self, rows: int, parts: Callable[[], Iterator[NDArray[np.generic]]]) -> Streamed:
        row_bytes = packed_row_bytes(self.weights.shape[1], self.formula.bits)
        return Streamed(f"{self.name}.codes", "uint8", (rows, row_bytes), parts)

    def _all_codes(self) -> Iterator[Tensor]:
        for part in self.weights.blocks(rows_at_once(self.weights.shape[1])):
            yield self.formula.codes(part, self.scale)

    def _packed(self, alive: NDArray[np.bool_] | None) -> Iterator[NDArray[np.generic]]:
        first = 0
        for codes in self._all_codes():
            end = first + codes.shape[0]
            chosen = codes if alive is None else codes[torch.from_numpy(alive[first:end]).to(codes.device)]
            yield pack_codes(chosen.contiguous(), self.formula.bits, self.kernels)
            first = end


def _rowwise_table(name: str, weight: Tensor, bits: int) -> Streamed:
    def parts() -> Iterator[NDArray[np.generic]]:
        for part in torch.split(weight, rows_at_once(weight.shape[1])):
            yield pack_rows(part.cpu().contiguous(), bits).numpy()

    row_bytes = packed_row_bytes(weight.shape[1], bits) + ROWWISE_SCALE_BYTES
    return Streamed(f"{name}.codes", "uint8", (weight.shape[0], row_bytes), parts)


def mlp_tensors(model: Dlrm) -> list[Streamed]:
    """Returns weights and biases, as codes where they are quantized, and what the scales of inputs follow from.

    The bias of the last layer is corrected for the rows without a click that training did not see.
    """
    tensors: list[Streamed] = []
    maxima, layers = model.inputs.running.cpu().numpy(), list(model.mlp_layers())
    for i, (name, layer, quantized) in enumerate(layers):
        if quantized is None:
            tensors.append(whole(f"{name}.weight", layer.weight.cpu().numpy()))
        else:
            formula, scale = quantized
            codes = pack_codes(formula.codes(layer.weight, scale).contiguous(), formula.bits, model.kernels)
            tensors += [whole(f"{name}.codes", codes), *_grid(name, formula, scale.view(-1))]
        correction = model.logit_correction() if i == len(layers) - 1 else 0.0
        tensors += _bias(name, layer.bias + correction if correction else layer.bias, model)
        if len(maxima):
            tensors.append(whole(f"{name}.input_max", maxima[i : i + 1]))
    return tensors


def _bias(name: str, bias: Tensor, model: Dlrm) -> list[Streamed]:
    formula = model.bias_formula
    if bias.numel() == 0:
        return []
    if formula is None:
        return [whole(f"{name}.bias", bias.cpu().numpy())]
    scale = formula.scale_of(bias.abs().amax().view(1))
    codes = pack_codes(formula.codes(bias.view(1, -1), scale.view(1, 1)), formula.bits, model.kernels)
    return [whole(f"{name}.bias_codes", codes), whole(f"{name}.bias_step", scale.cpu().numpy())]


def _grid(name: str, formula: Formula, scale: Tensor) -> list[Streamed]:
    grid = formula.grid(scale)
    offset = [] if grid.offset is None else [whole(f"{name}.offset", grid.offset.cpu().numpy())]
    return [whole(f"{name}.step", grid.scale.cpu().numpy()), *offset]
