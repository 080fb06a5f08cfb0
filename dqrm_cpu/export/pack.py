"""The packed files of a trained run: dense, and sparse where dead rows can be left out; written and read back."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from dqrm_cpu.config import Config
from dqrm_cpu.export.read import require_same_tables
from dqrm_cpu.export.write import has_sparse_layout, write_model
from dqrm_cpu.model.dlrm import Dlrm


@dataclass(frozen=True)
class PackedFiles:
    """Bytes of the files as they lie on the disk."""

    dense: int
    sparse: int | None  # None: the method has no zero, so no row is dead


def pack_model(folder: Path, config: Config, model: Dlrm, scale: Tensor, identity: str = "") -> PackedFiles:
    """Writes FOLDER/dense.safetensors and FOLDER/sparse.safetensors; scale f32[T] of the tables."""
    layouts = ["dense", "sparse"] if has_sparse_layout(model) else ["dense"]
    sizes = {}
    for layout in layouts:
        path = packed_path(folder, layout)
        sizes[layout] = write_model(path, config, model, scale, layout, identity)
        require_same_tables(path, model, scale, config.quant)
    return PackedFiles(sizes["dense"], sizes.get("sparse"))


def packed_path(folder: Path, layout: str) -> Path:
    """Where a layout's file lies."""
    return folder / f"{layout}.safetensors"
