"""The packed files of a trained run: dense, and sparse where dead rows can be left out; written and read back."""

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from dqrm_cpu.config import Config
from dqrm_cpu.export.layout import ROWS_PER_RANK
from dqrm_cpu.export.read import require_same_tables
from dqrm_cpu.export.write import has_sparse_layout, write_model
from dqrm_cpu.model.dlrm import Dlrm
from dqrm_cpu.model.size import model_bytes, packed_row_bytes
from dqrm_cpu.quant.liveness import RowCounts, count_rows

_FLOAT_BYTES = _RANK_BYTES = 4


@dataclass(frozen=True)
class PackedFiles:
    """Bytes of the files as they lie on the disk, and what the tables in them are made of."""

    dense: int
    sparse: int | None  # None: the method has no zero, so no row is dead
    rows: RowCounts | None = None  # None: the weights with which training began are not known
    updated_fp32: int | None = (
        None  # bytes in FP32 of a model whose tables have no rows but those that training updated
    )
    updated_sparse: int | None = None  # of its sparse file


def pack_model(folder: Path, config: Config, model: Dlrm, scale: Tensor, identity: str = "") -> PackedFiles:
    """Writes FOLDER/dense.safetensors and FOLDER/sparse.safetensors; scale f32[T] of the tables."""
    layouts = ["dense", "sparse"] if has_sparse_layout(model) else ["dense"]
    sizes = {}
    for layout in layouts:
        path = packed_path(folder, layout)
        sizes[layout] = write_model(path, config, model, scale, layout, identity)
        require_same_tables(path, model, scale, config.quant)
    if model.seed is None or model.table_formula is None:
        return PackedFiles(sizes["dense"], sizes.get("sparse"))
    counts = count_rows(model.table_formula, model.tables, scale, model.first_rows)
    return _with_counts(PackedFiles(sizes["dense"], sizes.get("sparse"), counts), config)


def _with_counts(files: PackedFiles, config: Config) -> PackedFiles:
    """Without rows that training never updated: their weights in FP32; their codes, bits and counts in the file."""
    counts, model = files.rows, config.model
    assert counts is not None
    fp32 = model_bytes(config).fp32 - counts.never_updated * model.embedding_dim * _FLOAT_BYTES
    if files.sparse is None:
        return replace(files, updated_fp32=fp32)
    codes = (counts.live - counts.live_updated) * packed_row_bytes(model.embedding_dim, config.quant.embedding_bits)
    places = counts.never_updated // 8 + counts.never_updated // ROWS_PER_RANK * _RANK_BYTES
    return replace(files, updated_fp32=fp32, updated_sparse=files.sparse - codes - places)


def packed_path(folder: Path, layout: str) -> Path:
    """Where a layout's file lies."""
    return folder / f"{layout}.safetensors"
