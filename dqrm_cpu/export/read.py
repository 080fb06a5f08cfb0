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
from dqrm_cpu.export.write import FORMAT, ROWS_PER_RANK
from dqrm_cpu.model.dlrm import Dlrm
from dqrm_cpu.model.tables import table_names

_ROWS_AT_ONCE = 1 << 16  # a multiple of ROWS_PER_RANK


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
        maxima = model.inputs.running
        for i, (name, layer, _) in enumerate(model.mlp_layers()):
            layer.weight.copy_(_matrix(file, present, name, layer.weight.shape, model, quant.mlp_bits))
            layer.bias.copy_(_bias(file, present, name, layer.bias.numel(), model, quant.mlp_bias_bits))
            if maxima.numel():
                maxima[i] = float(file.get_tensor(f"{name}.input_max")[0])


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
        for at in range(first, end, _ROWS_AT_ONCE):
            stop = min(at + _ROWS_AT_ONCE, end)
            # Opened for each stretch: what was read of a mapped file counts as memory of ours until it is closed.
            with safe_open(path, framework="np") as file:
                values = _stretch(file, name, layout, at - first, stop - first, model, bits)
            if steps is not None:
                values = values * float(steps[t]) + (0.0 if offsets is None else float(offsets[t]))
            yield at, stop, values


def _stretch(file: Any, name: str, layout: str, first: int, end: int, model: Dlrm, bits: int) -> Tensor:
    """Codes f32[end - first, D] of a table, or values where the file is row-wise."""
    dim, codes = model.tables.dim, file.get_slice(f"{name}.codes")
    if layout == "rowwise":
        return unpack_rows(torch.from_numpy(codes[first:end]), bits)
    if layout == "dense":
        return unpack_codes(codes[first:end], bits, dim, model.kernels)
    values, alive = torch.zeros(end - first, dim), _alive(file, name, first, end)
    before = int(file.get_slice(f"{name}.rank")[first // ROWS_PER_RANK : first // ROWS_PER_RANK + 1][0])
    if alive.any():  # safetensors refuses an empty slice at the end
        live = codes[before : before + int(alive.sum())]
        values[torch.from_numpy(alive)] = unpack_codes(live, bits, dim, model.kernels)
    return values


def _alive(file: Any, name: str, first: int, end: int) -> NDArray[np.bool_]:
    """Which rows from `first`, a multiple of 8, on are stored."""
    packed = file.get_slice(f"{name}.bitmap")[first // 8 : -(-end // 8)]
    return np.unpackbits(packed, count=end - first, bitorder="little").astype(np.bool_)


def _bias(file: Any, present: set[str], name: str, size: int, model: Dlrm, bits: int) -> Tensor:
    if f"{name}.bias" in present:
        return torch.from_numpy(file.get_tensor(f"{name}.bias"))
    codes = unpack_codes(file.get_tensor(f"{name}.bias_codes"), bits, size, model.kernels)
    return codes[0] * torch.from_numpy(file.get_tensor(f"{name}.bias_step"))


def _matrix(file: Any, present: set[str], name: str, shape: torch.Size, model: Dlrm, bits: int) -> Tensor:
    if f"{name}.weight" in present:
        return torch.from_numpy(file.get_tensor(f"{name}.weight"))
    values = unpack_codes(file.get_tensor(f"{name}.codes"), bits, shape[1], model.kernels)
    values *= torch.from_numpy(file.get_tensor(f"{name}.step"))[:, None]
    if f"{name}.offset" in present:
        values += torch.from_numpy(file.get_tensor(f"{name}.offset"))[:, None]
    return values
