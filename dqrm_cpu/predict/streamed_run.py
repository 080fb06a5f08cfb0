"""A run whose tables stay on the disk: to be exported they are read block by block, and only a sample is in memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dqrm_cpu.config import Config
from dqrm_cpu.data.batch import Batch
from dqrm_cpu.errors import CheckpointError
from dqrm_cpu.export.write import rows_at_once
from dqrm_cpu.kernels.master_rows import ROW_TYPES, row_values
from dqrm_cpu.model.dlrm import Dlrm
from dqrm_cpu.model.tables import table_places
from dqrm_cpu.predict.scorer import lacks_activations
from dqrm_cpu.predict.trained_model import TrainedModel
from dqrm_cpu.quant.methods import found_formula
from dqrm_cpu.train.checkpoint_files import read_blocks, require_intact
from dqrm_cpu.train.checkpoint_manifest import CheckpointManifest, read_manifest, table_info
from dqrm_cpu.train.session import load_kernels, load_model_weights, open_scales
from dqrm_cpu.train.working import Advance, ShowWork, unshown, untold

_CPU = torch.device("cpu")

Rows = Sequence[NDArray[np.int64]]
"""Rows of each table, rising."""


class CheckpointTable:
    """The weights of one table in a checkpoint."""

    def __init__(self, folder: Path, manifest: CheckpointManifest, place: tuple[str, int], rows: int, dim: int) -> None:
        self._folder, self._manifest = folder, manifest
        self._tensor, self._first_row = place
        self.shape = rows, dim
        self.advance: Advance = untold
        """Hears of the bytes of each block that is done; whoever goes through all rows sets it."""

    def blocks(self, most_rows: int) -> Iterator[Tensor]:
        """Yields f32[n, D], all rows in their order."""
        blocks = read_blocks(self._folder, self._manifest, self._tensor, self._first_row, self.shape[0], most_rows)
        for block in blocks:
            values = row_values(block)
            yield values
            self.advance(values.nbytes)

    def absmax_and(self, wanted: NDArray[np.int64], into: Tensor) -> float:
        """Returns max|W| of the table, and copies the wanted rows, which rise, into f32[n, D]."""
        largest, first = 0.0, 0
        for block in self.blocks(rows_at_once(self.shape[1])):
            largest = max(largest, float(block.abs().max()))
            low, high = np.searchsorted(wanted, (first, first + len(block)))
            into[low:high] = block[torch.from_numpy(wanted[low:high] - first)]
            first += len(block)
        return largest


def table_bytes(table: CheckpointTable) -> int:
    """Returns the bytes of the values of a table's rows."""
    rows, dim = table.shape
    return 4 * rows * dim


@dataclass(frozen=True)
class StreamedRun:
    """A model that has the rows of a sample alone, the scales f32[T] of the whole tables, and where those are."""

    model: Dlrm
    scale: Tensor
    tables: tuple[CheckpointTable, ...]


def can_stream(config: Config) -> bool:
    """Tells whether the scales follow from max|W|, for which tables are read once."""
    quant = config.quant
    return found_formula(quant, quant.embedding_bits) is not None and quant.target_alive == 0


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


def open_streamed(trained: TrainedModel, sample: Rows, show_work: ShowWork = unshown) -> StreamedRun:
    """Reads a checkpoint to its end; every byte is compared with its checksum first."""
    config, manifest = trained.config, read_manifest(trained.path)
    _require_tables(trained.path, manifest, config)
    with show_work(f"checking {trained.path}", manifest.num_bytes) as advance:
        require_intact(trained.path, manifest, advance)
    shapes = zip(table_places(config.model), config.model.table_rows, config.model.dims, strict=True)
    tables = tuple(CheckpointTable(trained.path, manifest, *shape) for shape in shapes)
    sizes = tuple(max(rows.size, 1) for rows in sample)
    train = replace(config.train, master_rows="fp32")  # what is copied below are values
    few = replace(config, train=train, model=replace(config.model, table_rows=sizes))
    model = Dlrm(few, load_kernels(few, _CPU), _CPU)
    absmax = torch.empty(len(tables))
    with show_work("finding the scales", sum(map(table_bytes, tables))) as advance, reported(tables, advance):
        for t, (table, rows, weight) in enumerate(zip(tables, sample, model.groups.weights, strict=True)):
            absmax[t] = table.absmax_and(rows, weight)
    scales = open_scales(config.quant, model)
    if not load_model_weights(model, scales, trained.path, without=model.groups.names("tables")):
        raise lacks_activations(trained.path)
    return StreamedRun(model, scales.for_evaluation(at_least=absmax), tables)


def _require_tables(folder: Path, manifest: CheckpointManifest, config: Config) -> None:
    """Raises CheckpointError where a checkpoint has other tables than the configuration."""
    sizes: dict[tuple[str, int], int] = {}
    for (tensor, _), rows, dim in zip(
        table_places(config.model), config.model.table_rows, config.model.dims, strict=True
    ):
        sizes[tensor, dim] = sizes.get((tensor, dim), 0) + rows
    for (tensor, dim), rows in sizes.items():
        if manifest.tensors.get(tensor) != table_info(ROW_TYPES[config.train.master_rows], rows, dim):
            raise CheckpointError(
                f"the checkpoint {folder} belongs to another model: it has not the {rows:,} rows of {dim} values of "
                f"{tensor}; use the configuration that it was saved with"
            )


def rows_of(batches: Sequence[Batch], num_tables: int) -> list[NDArray[np.int64]]:
    """Returns the rows of each table that batches look up."""
    none = np.empty(0, np.int64)
    return [np.unique(np.concatenate([none, *(ids_of(batch, t) for batch in batches)])) for t in range(num_tables)]


def ids_of(batch: Batch, table: int) -> NDArray[np.int64]:
    """Returns the ids that a batch looks up in a table."""
    if batch.offsets is None:
        found: NDArray[np.int64] = batch.ids[table].numpy().astype(np.int64)
        return found
    low, high = batch.offsets[[table * batch.size, (table + 1) * batch.size]].tolist()
    of_bags: NDArray[np.int64] = batch.ids[low:high].numpy().astype(np.int64)
    return of_bags


def renumbered(batch: Batch, rows: Rows) -> Batch:
    """Returns the batch for a model that has these rows alone."""
    ids = [np.searchsorted(of_table, ids_of(batch, t)).astype(np.int32) for t, of_table in enumerate(rows)]
    joined = np.stack(ids) if batch.offsets is None else np.concatenate(ids)
    return replace(batch, ids=torch.from_numpy(joined))
