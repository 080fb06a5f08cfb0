"""Reads a packed model back into a model's FP32 weights: what is scored afterwards is what the file holds."""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dqrm_cpu.config import QuantConfig
from dqrm_cpu.errors import CheckpointError
from dqrm_cpu.export.codes import unpack_codes
from dqrm_cpu.export.rowwise import unpack_rows
from dqrm_cpu.export.write import FORMAT
from dqrm_cpu.model.dlrm import Dlrm
from dqrm_cpu.model.tables import table_names

_ROWS_AT_ONCE = 1 << 16


def read_metadata(path: Path) -> Mapping[str, str]:
    """Format, layout and configuration of a packed model."""
    try:
        with safe_open(path, framework="np") as file:
            found: Mapping[str, str] = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is no packed model: {error}; write it again by dqrm-cpu compress") from error
    if found.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {found.get('format')}, not {FORMAT}; use the dqrm-cpu that wrote it")
    return found


def load_packed(path: Path, model: Dlrm, quant: QuantConfig) -> None:
    """Fills tables and MLPs of a model of the same shape with the values that the file stands for."""
    for first, end, values in packed_rows(path, model, quant.embedding_bits):
        model.tables.weight[first:end] = values.to(model.device)
    with safe_open(path, framework="np") as file:
        present = set(file.keys())
        for name, layer, _ in model.mlp_layers():
            layer.weight.copy_(_matrix(file, present, name, layer.weight.shape, model, quant.mlp_bits))
            layer.bias.copy_(torch.from_numpy(file.get_tensor(f"{name}.bias")))


def require_same_tables(path: Path, model: Dlrm, scale: Tensor, quant: QuantConfig) -> None:
    """Reads the tables of a file just written and compares them with the model's, quantized by scale f32[T]."""
    formula = model.table_formula
    assert formula is not None
    table_of = model.tables.row_offset[1:]
    for first, end, values in packed_rows(path, model, quant.embedding_bits):
        table = int(torch.searchsorted(table_of, first, right=True))
        expected = formula.values(model.tables.weight[first:end], scale[table].view(1, 1)).cpu()
        if not torch.allclose(values, expected, rtol=1e-6, atol=1e-7):
            raise CheckpointError(f"{path} does not hold what was written, from row {first} on; check the disk")


def packed_rows(path: Path, model: Dlrm, bits: int) -> Iterator[tuple[int, int, Tensor]]:
    """All rows of the arena that the file holds, a stretch of one table at a time: first, end, values f32[n, D]."""
    layout = read_metadata(path)["layout"]
    with safe_open(path, framework="np") as file:
        offsets = file.get_tensor("tables.offset") if "tables.offset" in file.keys() else None  # noqa: SIM118
        steps = None if layout == "rowwise" else file.get_tensor("tables.step")
        bounds = pairwise(model.tables.row_offset.tolist())
        for t, (name, (first, end)) in enumerate(zip(table_names(model.tables.num_tables), bounds, strict=True)):
            rows = _Rows(file, name, layout, model, bits)
            for at in range(first, end, _ROWS_AT_ONCE):
                stop = min(at + _ROWS_AT_ONCE, end)
                values = rows.read(at - first, stop - first)
                if steps is not None:
                    values = values * float(steps[t]) + (0.0 if offsets is None else float(offsets[t]))
                yield at, stop, values


class _Rows:
    """Codes, or for row-wise files values, of one table."""

    def __init__(self, file: Any, name: str, layout: str, model: Dlrm, bits: int) -> None:
        self._layout = layout
        self._model = model
        self._bits = bits
        self._codes = file.get_slice(f"{name}.codes")
        self._alive: NDArray[np.bool_] | None = None
        if layout == "sparse":
            bitmap = np.unpackbits(file.get_tensor(f"{name}.bitmap"), bitorder="little")
            self._alive = bitmap.astype(np.bool_)
            self._before = np.concatenate([[0], np.cumsum(self._alive)])

    def read(self, first: int, end: int) -> Tensor:
        """f32[end - first, D]"""
        dim, kernels = self._model.tables.dim, self._model.kernels
        if self._layout == "rowwise":
            return unpack_rows(torch.from_numpy(self._codes[first:end]), self._bits)
        if self._alive is None:
            return unpack_codes(self._codes[first:end], self._bits, dim, kernels)
        values = torch.zeros(end - first, dim)
        if self._before[first] == self._before[end]:
            return values  # safetensors refuses an empty slice at the end
        live = unpack_codes(self._codes[self._before[first] : self._before[end]], self._bits, dim, kernels)
        values[torch.from_numpy(self._alive[first:end])] = live
        return values


def _matrix(file: Any, present: set[str], name: str, shape: torch.Size, model: Dlrm, bits: int) -> Tensor:
    if f"{name}.weight" in present:
        return torch.from_numpy(file.get_tensor(f"{name}.weight"))
    values = unpack_codes(file.get_tensor(f"{name}.codes"), bits, shape[1], model.kernels)
    values *= torch.from_numpy(file.get_tensor(f"{name}.step"))[:, None]
    if f"{name}.offset" in present:
        values += torch.from_numpy(file.get_tensor(f"{name}.offset"))[:, None]
    return values
