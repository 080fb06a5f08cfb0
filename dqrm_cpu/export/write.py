"""Writes a trained model as packed files: codes, what they mean, the MLPs, the configuration.

`dense` holds the codes of every row. `sparse` holds those of live rows (any code that is not 0) alone, a bit for each
row that says whether it lives, and for every 512 rows how many live ones came before, so that a reader finds a row's
codes without scanning. docs/quantization.md lists the tensors.

In NumPy: an export needs no torch, which takes more memory than all of it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.config import Config
from dqrm_cpu.export.codes import pack_codes
from dqrm_cpu.export.features import RawFeatures, describe, vocabulary_tensors
from dqrm_cpu.export.packed_layout import CORRECTED, FORMATS, ROWS_PER_RANK
from dqrm_cpu.export.safetensors_writer import Streamed, whole, write_tensors
from dqrm_cpu.model.shapes import table_names
from dqrm_cpu.model.size import packed_row_bytes
from dqrm_cpu.quant.formula import Formula, FoundScale
from dqrm_cpu.serving.description import MODEL, member_tensor
from dqrm_cpu.serving.model import ENSEMBLE, SINGLE

_FLOAT_BYTES = 4
_BLOCK_BYTES = 1 << 19
"""Of weights that are turned into codes at a time: with what comes of them they stay in a core's cache."""

Floats = NDArray[np.float32]


def rows_at_once(dim: int) -> int:
    """Returns how many rows f32[dim] to work on at a time."""
    return max(1, _BLOCK_BYTES // (_FLOAT_BYTES * dim))


class TableRows(Protocol):
    """The weights of a table, wherever they are."""

    @property
    def shape(self) -> tuple[int, int]:
        """Its rows, and the values of a row."""

    def blocks(self, most_rows: int) -> Iterator[Floats]:
        """Yields f32[n, D], all rows in their order, so many at once at most."""


class PackedLayer(NamedTuple):
    """A dense layer to write."""

    name: str
    weight: Floats  # f32[outputs, inputs]
    bias: Floats  # f32[outputs]; empty where the layer has none
    quantizer: tuple[Formula, Floats] | None  # with the scale f32[outputs, 1] or [1, 1]; None: it stays in FP32


class PackedLayers(NamedTuple):
    """All dense layers of a model, in the order of the file."""

    layers: Sequence[PackedLayer]
    bias_formula: FoundScale | None  # None: biases stay in FP32
    input_max: Floats  # f32[L] of what each layer reads; empty where that is not quantized
    correction: float  # of the last bias, for the rows without a click that training did not see

    def tensors(self) -> list[Streamed]:
        """Returns weights and biases, as codes where they are quantized, and what the scales of inputs follow from."""
        tensors: list[Streamed] = []
        for i, layer in enumerate(self.layers):
            if layer.quantizer is None:
                tensors.append(whole(f"{layer.name}.weight", layer.weight))
            else:
                formula, scale = layer.quantizer
                codes = pack_codes(formula.codes(layer.weight, scale), formula.bits)
                tensors += [whole(f"{layer.name}.codes", codes), *_grid(layer.name, formula, scale.reshape(-1))]
            tensors += self._bias(layer.name, self.bias(i))
            if self.input_max.size:
                tensors.append(whole(f"{layer.name}.input_max", self.input_max[i : i + 1]))
        return tensors

    def bias(self, number: int) -> Floats:
        """Returns the bias of a layer, corrected where it is the last one's."""
        bias = self.layers[number].bias
        if not self.correction or number < len(self.layers) - 1:
            return bias
        return bias + np.float32(self.correction)

    def read_bias(self, number: int) -> Floats | None:
        """Returns the bias that a layer adds, quantized where biases are; None: it has none."""
        bias, formula = self.bias(number), self.bias_formula
        if not bias.size:
            return None
        return bias if formula is None else formula.values(bias, _bias_scale(formula, bias))

    def _bias(self, name: str, bias: Floats) -> list[Streamed]:
        formula = self.bias_formula
        if not bias.size:
            return []
        if formula is None:
            return [whole(f"{name}.bias", bias)]
        scale = _bias_scale(formula, bias)
        codes = pack_codes(formula.codes(bias[None], scale[None]), formula.bits)
        return [whole(f"{name}.bias_codes", codes), whole(f"{name}.bias_step", scale)]


def _bias_scale(formula: FoundScale, bias: Floats) -> Floats:
    return formula.scale_of(np.abs(bias).max(keepdims=True))


class PackedWeights(NamedTuple):
    """A model to write."""

    tables: Sequence[TableRows]
    formula: Formula | None  # of the tables
    scale: Floats  # f32[T] of the tables
    layers: PackedLayers

    def tensors(self, layout: str) -> list[Streamed]:
        """Returns codes and layers by the names of a single model."""
        assert self.formula is not None, "an FP32 model has no codes"
        tensors: list[Streamed] = []
        for name, rows, scale in zip(table_names(len(self.tables)), self.tables, self.scale, strict=True):
            table = _Table(name, rows, self.formula, scale.reshape(1, 1))
            tensors += table.sparse() if layout == "sparse" else table.dense()
        return [*tensors, *_grid("tables", self.formula, self.scale), *self.layers.tensors()]


def packed_path(folder: Path, layout: str) -> Path:
    """Returns where a layout's file lies."""
    return folder / f"{layout}.safetensors"


def write_models(
    path: Path,
    config: Config,
    members: Sequence[PackedWeights],
    layout: str,
    identity: str = "",
    features: RawFeatures | None = None,
) -> int:
    """Writes one file of an ensemble, whose members share vocabulary and features, or of one model; returns its bytes.

    `layout`: dense or sparse. `identity`: that of the data's schema and vocabulary, as a run records it; empty where it
    is not known. With `features` the file can score raw rows by itself.
    """
    assert features is not None or len(members) == 1, "only a file with features says how many members it has"
    tensors = [
        replace(tensor, name=member_tensor(number, tensor.name))
        for number, weights in enumerate(members, 1)
        for tensor in weights.tensors(layout)
    ]
    metadata = file_metadata(config, layout, identity)
    if features is not None:
        description = replace(describe(config, layout, features), members=len(members))
        tensors += vocabulary_tensors(description, features)
        metadata |= {"format": SINGLE if len(members) == 1 else ENSEMBLE, MODEL: description.to_json()}
    return write_tensors(path, tensors, metadata)


def file_metadata(config: Config, layout: str, identity: str) -> dict[str, str]:
    """Returns what a reader must know before the tensors."""
    corrected = {CORRECTED: "true"} if config.data.trained_keep_rate < 1 else {}
    version = FORMATS[3] if config.model.table_dims else FORMATS[1]  # earlier versions read what they can
    return {"format": version, "layout": layout, "identity": identity, "config": config.to_toml(), **corrected}


def has_sparse_layout(formula: Formula | None) -> bool:
    """Tells whether code 0 is exactly 0, so that rows can be left out."""
    return formula is not None and formula.grid(np.ones(1, np.float32)).offset is None


class _Table(NamedTuple):
    name: str
    weights: TableRows
    formula: Formula
    scale: Floats

    def dense(self) -> list[Streamed]:
        return [self._codes(self.weights.shape[0], lambda: self._packed(None))]

    def sparse(self) -> list[Streamed]:
        alive = self._alive()
        live_rows = np.add.reduceat(alive, np.arange(0, len(alive), ROWS_PER_RANK), dtype=np.int32)
        before = np.cumsum(live_rows, dtype=np.int32) - live_rows
        bitmap = np.packbits(alive, bitorder="little")
        codes = self._codes(int(alive.sum()), lambda: self._packed(bitmap))
        return [whole(f"{self.name}.bitmap", bitmap), whole(f"{self.name}.rank", before), codes]

    def _alive(self) -> NDArray[np.bool_]:
        # Filled in place: small arrays between large ones that come and go would keep holes in the heap.
        alive, first = np.empty(self.weights.shape[0], dtype=np.bool_), 0
        for codes in self._all_codes():
            flags = codes != 0
            # Eight at once where rows divide so, several times as quick.
            words = flags.view(np.uint64) if flags.shape[1] % 8 == 0 else flags
            alive[first : first + len(codes)] = words.any(1)
            first += len(codes)
        return alive

    def _codes(self, rows: int, parts: Callable[[], Iterator[NDArray[np.generic]]]) -> Streamed:
        row_bytes = packed_row_bytes(self.weights.shape[1], self.formula.bits)
        return Streamed(f"{self.name}.codes", "uint8", (rows, row_bytes), parts)

    def _all_codes(self) -> Iterator[Floats]:
        for part in self.weights.blocks(rows_at_once(self.weights.shape[1])):
            yield self.formula.codes(part, self.scale)

    def _packed(self, bitmap: NDArray[np.uint8] | None) -> Iterator[NDArray[np.generic]]:
        first = 0
        for codes in self._all_codes():
            end = first + len(codes)
            yield pack_codes(codes if bitmap is None else codes[_bits(bitmap, first, end)], self.formula.bits)
            first = end


def _bits(bitmap: NDArray[np.uint8], first: int, end: int) -> NDArray[np.bool_]:
    """Returns bits first to end - 1, bool[end - first]."""
    begin = first // 8
    bits = np.unpackbits(bitmap[begin : -(-end // 8)], bitorder="little")
    return bits[first - 8 * begin : end - 8 * begin].view(np.bool_)


def _grid(name: str, formula: Formula, scale: Floats) -> list[Streamed]:
    grid = formula.grid(scale)
    offset = [] if grid.offset is None else [whole(f"{name}.offset", grid.offset)]
    return [whole(f"{name}.step", grid.scale), *offset]
