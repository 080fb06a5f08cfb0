"""A run whose tables stay on the disk: to be exported they are read block by block, and only a sample is in memory.

Without torch, which takes more memory than all of an export.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.base.decode import UnreadableError, decoded
from dqrm_cpu.config import Config
from dqrm_cpu.errors import CheckpointError
from dqrm_cpu.export.write import PackedLayer, PackedLayers, PackedWeights, rows_at_once
from dqrm_cpu.kernels.row_forms import UNQUANTIZED
from dqrm_cpu.model.correction import keep_rate_correction
from dqrm_cpu.model.shapes import MlpShapes, mlp_shapes, scale_counts, split_flat, table_places
from dqrm_cpu.predict.run_network import Rows
from dqrm_cpu.predict.trained_model import TrainedModel, lacks_activations
from dqrm_cpu.quant.formula import Formula, FoundScale
from dqrm_cpu.quant.methods import Uniform, found_formula, select_formula
from dqrm_cpu.quant.scale_schedule import ramped_widths
from dqrm_cpu.train.checkpoint_manifest import (
    CheckpointManifest,
    TensorInfo,
    read_manifest,
    require_tensors,
    table_info,
)
from dqrm_cpu.train.checkpoint_rows import read_blocks, read_tensor, require_intact
from dqrm_cpu.train.working import Advance, ShowWork, unshown, untold

_MLPS, _SCALES, _ACTIVATIONS = "mlps", "scales", "activations"
"""The tensors of a checkpoint beside its tables."""

Floats = NDArray[np.float32]


class _State(msgspec.Struct):
    """The part of a checkpoint's state that the width of its scales follows from."""

    scale_refreshed_at: int = -1


class CheckpointTable:
    """The weights of one table in a checkpoint."""

    def __init__(self, folder: Path, manifest: CheckpointManifest, place: tuple[str, int], rows: int, dim: int) -> None:
        self._folder, self._manifest = folder, manifest
        self._tensor, self._first_row = place
        self.shape = rows, dim
        self.advance: Advance = untold
        """Hears of the bytes of each block that is done; whoever goes through all rows sets it."""

    def blocks(self, most_rows: int) -> Iterator[Floats]:
        """Yields f32[n, D], all rows in their order."""
        blocks = read_blocks(self._folder, self._manifest, self._tensor, self._first_row, self.shape[0], most_rows)
        for block in blocks:
            yield block
            self.advance(block.nbytes)

    def absmax_and(self, wanted: NDArray[np.int64]) -> tuple[np.float32, Floats]:
        """Returns max|W| of the table, and the wanted rows f32[n, D], which rise."""
        largest, first = np.float32(0), 0
        into = np.empty((wanted.size, self.shape[1]), np.float32)
        for block in self.blocks(rows_at_once(self.shape[1])):
            largest = max(largest, block.max(), -block.min())
            low, high = np.searchsorted(wanted, (first, first + len(block)))
            into[low:high] = block[wanted[low:high] - first]
            first += len(block)
        return largest, into


def table_bytes(table: CheckpointTable) -> int:
    """Returns the bytes of the values of a table's rows."""
    rows, dim = table.shape
    return 4 * rows * dim


@dataclass(frozen=True)
class StreamedRun:
    """A model to write, whose tables are read while they are written, and the rows of a sample: f32[n, D] of each."""

    weights: PackedWeights
    tables: tuple[CheckpointTable, ...]
    values: tuple[Floats, ...]


@contextmanager
def reported(tables: Sequence[CheckpointTable], advance: Advance) -> Iterator[None]:
    """Has tables tell how many bytes of them are done."""
    for table in tables:
        table.advance = advance
    try:
        yield
    finally:
        for table in tables:
            table.advance = untold


def can_stream(trained: TrainedModel) -> bool:
    """Tells whether the scales follow from max|W|, for which tables are read once, or were learned."""
    quant = trained.config.quant
    if found_formula(quant, quant.embedding_bits) is not None:
        return quant.target_alive == 0
    manifest = read_manifest(trained.path)
    if _SCALES not in manifest.tensors:
        return False
    # As long as none is learned, they are those with which training would begin, from the mean of a table.
    return all(part.any() for part in _learned_scales(trained, manifest))


def open_streamed(trained: TrainedModel, sample: Rows, show_work: ShowWork = unshown) -> StreamedRun:
    """Reads a checkpoint to its end; every byte is compared with its checksum first."""
    config, manifest = trained.config, read_manifest(trained.path)
    require_tensors(trained.path, manifest, _tensors_of(config), allow_unused=True)
    with show_work(f"checking {trained.path}", manifest.num_bytes) as advance:
        require_intact(trained.path, manifest, advance)
    shapes = zip(table_places(config.model), config.model.table_rows, config.model.dims, strict=True)
    tables = tuple(CheckpointTable(trained.path, manifest, *shape) for shape in shapes)
    with show_work("finding the scales", sum(map(table_bytes, tables))) as advance, reported(tables, advance):
        found = [table.absmax_and(rows) for table, rows in zip(tables, sample, strict=True)]
    absmax = np.array([largest for largest, _ in found], np.float32)
    formula = select_formula(config.quant, config.quant.embedding_bits)
    scale, matrices = _scales(trained, manifest, absmax)
    layers = _layers(trained, manifest, matrices)
    return StreamedRun(PackedWeights(tables, formula, scale, layers), tables, tuple(values for _, values in found))


def _tensors_of(config: Config) -> Mapping[str, TensorInfo]:
    """Returns the tensors that a checkpoint of the configuration has, but for the scales of what its layers read."""
    model, shapes = config.model, mlp_shapes(config)
    rows: dict[tuple[str, int], int] = {}
    for (tensor, _), of_table, dim in zip(table_places(model), model.table_rows, model.dims, strict=True):
        rows[tensor, dim] = rows.get((tensor, dim), 0) + of_table
    form = config.train.master_rows
    tensors = {tensor: table_info(form, count, dim) for (tensor, dim), count in rows.items()}
    tensors[_MLPS] = TensorInfo("float32", (shapes.num_parameters,))
    learned = scale_counts(config.quant, len(model.table_rows), shapes.layers).total
    return tensors | ({_SCALES: TensorInfo("float32", (learned,))} if learned else {})


def _learned_scales(trained: TrainedModel, manifest: CheckpointManifest) -> list[Floats]:
    """Returns the learned scales f32[T] of the tables, then those of each matrix."""
    config = trained.config
    require_tensors(trained.path, manifest, _tensors_of(config), allow_unused=True)
    counts = scale_counts(config.quant, len(config.model.table_rows), mlp_shapes(config).layers)
    bounds = np.cumsum([0, counts.tables, *counts.matrices])
    flat = read_tensor(trained.path, manifest, _SCALES)
    return [flat[first:end] for first, end in pairwise(bounds)]


def _scales(
    trained: TrainedModel, manifest: CheckpointManifest, absmax: Floats
) -> tuple[Floats, Sequence[Floats] | None]:
    """Returns the scales f32[T] of the tables, and those that were learned of matrices; None: they are found."""
    quant = trained.config.quant
    formula = found_formula(quant, quant.embedding_bits)
    if formula is None:
        tables, *matrices = _learned_scales(trained, manifest)
        return tables, matrices
    scale = formula.scale_of(absmax)
    if set(quant.step_width) == {1.0}:
        return scale, None
    try:
        state = decoded(dict(manifest.state), _State)
    except UnreadableError as error:
        raise CheckpointError(f"the state of the checkpoint {trained.path} {error}; use another checkpoint") from error
    final = np.broadcast_to(np.array(quant.step_width, np.float32), absmax.shape)
    return scale * ramped_widths(final, quant.step_width_ramp_steps, state.scale_refreshed_at), None


def _layers(trained: TrainedModel, manifest: CheckpointManifest, learned: Sequence[Floats] | None) -> PackedLayers:
    config, shapes = trained.config, mlp_shapes(trained.config)
    maxima = np.empty(0, np.float32)
    if config.quant.activation_bits != UNQUANTIZED:
        if _ACTIVATIONS not in manifest.tensors:
            raise lacks_activations(trained.path)
        wanted = {_ACTIVATIONS: TensorInfo("float32", (len(shapes.layers),))}
        require_tensors(trained.path, manifest, wanted, allow_unused=True)
        maxima = read_tensor(trained.path, manifest, _ACTIVATIONS)
    bias_bits = config.quant.mlp_bias_bits
    return PackedLayers(
        list(_parameters(config, shapes, read_tensor(trained.path, manifest, _MLPS), learned)),
        None if bias_bits == UNQUANTIZED else Uniform(bias_bits),
        maxima,
        keep_rate_correction(config.data.trained_keep_rate),
    )


def _parameters(
    config: Config, shapes: MlpShapes, flat: Floats, learned: Sequence[Floats] | None
) -> Iterator[PackedLayer]:
    """Yields all layers, with what quantizes their weights."""
    quant = config.quant
    for i, (name, (weight, bias)) in enumerate(zip(shapes.names, split_flat(flat, shapes.layers), strict=True)):
        quantizer: tuple[Formula, Floats] | None = None
        found = found_formula(quant, quant.mlp_bits)
        if quant.mlp_bits != UNQUANTIZED:
            formula = select_formula(quant, quant.mlp_bits)
            assert formula is not None, "an FP32 model has no codes"
            scale = _matrix_scale(found, weight, quant.mlp_granularity) if found else (learned or [])[i]
            quantizer = formula, scale.reshape(-1, 1)
        yield PackedLayer(name, weight, bias, quantizer)


def _matrix_scale(formula: FoundScale, weight: Floats, granularity: str) -> Floats:
    """Returns the scale of a matrix f32[1], or of its rows f32[outputs], that follows from max|W|."""
    rows = weight.reshape(1, -1) if granularity == "matrix" else weight
    return formula.scale_of(np.abs(rows).max(1))
