"""Reads a packed model back into a model's FP32 weights: what is scored afterwards is what the file holds."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dqrm_cpu.config import QuantConfig
from dqrm_cpu.errors import CheckpointError
from dqrm_cpu.export.packed_layout import ROWS_PER_RANK
from dqrm_cpu.export.packed_model import ROWS_AT_ONCE, PackedModel, open_packed, require_usable
from dqrm_cpu.export.rowwise import unpack_rows
from dqrm_cpu.export.safetensors_reader import PackedFile
from dqrm_cpu.model.correction import keep_rate_correction
from dqrm_cpu.model.dlrm import Dlrm
from dqrm_cpu.model.shapes import mlp_shapes, table_names
from dqrm_cpu.serving.description import BANDS
from dqrm_cpu.serving.stored import unpacked


def load_packed(path: Path, model: Dlrm, quant: QuantConfig) -> PackedModel:
    """Fills tables and MLPs of a model of the same shape with the values that the file stands for.

    Its probabilities are those of the traffic, whatever share of rows without a click training saw.
    """
    with open_packed(path) as (file, about):
        if about.members > 1:
            raise CheckpointError(f"{path} is an ensemble of {about.members} models, where one is wanted")
        if about.layout == BANDS:
            raise CheckpointError(
                f"{path} has rows in bands, and other ids than the model's tables: it is scored as it lies; give the "
                "run that it was exported from"
            )
        _require_model(about, model, quant)
        require_usable(file, about)
        for table, first, end, values in _all_rows(file, about, model):
            model.groups.weights[table][first:end] = values.to(model.device)
        maxima = model.inputs.running
        for i, (name, layer, _) in enumerate(model.mlp_layers()):
            layer.weight.copy_(_matrix(file, name, layer.weight.shape, quant.mlp_bits))
            if layer.bias.numel():
                layer.bias.copy_(_bias(file, name, layer.bias.numel(), quant.mlp_bias_bits))
            if maxima.numel():
                maxima[i] = float(file.tensor(f"{name}.input_max")[0])
        if not about.is_corrected:  # written by an earlier version
            layer.bias.add_(keep_rate_correction(about.config.data.trained_keep_rate))
        model.is_corrected = True
        return about


def require_same_tables(path: Path, model: Dlrm, scale: Tensor, quant: QuantConfig) -> None:
    """Reads the tables of a file just written and compares them with the model's, quantized by scale f32[T]."""
    formula = model.table_formula
    assert formula is not None
    with open_packed(path) as (file, about):
        _require_model(about, model, quant)
        require_usable(file, about)
        for table, first, end, values in _all_rows(file, about, model):
            expected = formula.values(model.groups.values(table, first, end), scale[table].view(1, 1)).cpu()
            # Nearly always they are equal, which is found in a tenth of the time.
            if not torch.equal(values, expected) and not torch.allclose(values, expected, rtol=1e-6, atol=1e-7):
                raise CheckpointError(
                    f"{path} does not hold what was written, from row {first} of C{table + 1} on; check the disk"
                )


def _require_model(about: PackedModel, model: Dlrm, quant: QuantConfig) -> None:
    """Requires a file of this model: of another shape, or at other widths, the same bytes would be other numbers."""
    stored = about.config
    ours = {
        "rows of tables": (stored.model.table_rows, tuple(model.groups.row_offset.diff().tolist())),
        "values of a row": (_row_values(stored.model.dims), _row_values(model.groups.dims)),
        "layers": (mlp_shapes(stored), model.shapes),
        **{
            f"quant.{key}": (getattr(stored.quant, key), getattr(quant, key))
            for key in ("embedding_bits", "mlp_bits", "mlp_bias_bits", "activation_bits")
        },
    }
    for name, (theirs, wanted) in ours.items():
        if theirs != wanted:
            raise CheckpointError(
                f"{about.path} is of another model: its {name} are {str(theirs)[:100]}, not {str(wanted)[:100]}; "
                "use the settings that it was written with"
            )


def _row_values(dims: Sequence[int]) -> str:
    """Says how many values the rows of tables have; one number where all agree."""
    return str(dims[0]) if len(set(dims)) == 1 else str(list(dims))


def _all_rows(file: PackedFile, about: PackedModel, model: Dlrm) -> Iterator[tuple[int, int, int, Tensor]]:
    """Yields all rows, a stretch of one table at a time: table, first, end, values f32[n, D]."""
    bits, layout = about.config.quant.embedding_bits, about.layout
    offsets = file.tensor("tables.offset") if "tables.offset" in file.entries else None
    scales = None if layout == "rowwise" else file.tensor("tables.step")
    shapes = zip(model.groups.row_offset.diff().tolist(), model.groups.dims, strict=True)
    for t, (name, (rows, dim)) in enumerate(zip(table_names(model.groups.num_tables), shapes, strict=True)):
        for first in range(0, rows, ROWS_AT_ONCE):
            end = min(first + ROWS_AT_ONCE, rows)
            values = _stretch(file, name, layout, range(first, end), dim, bits)
            if scales is not None:
                values = values * float(scales[t]) + (0.0 if offsets is None else float(offsets[t]))
            yield t, first, end, values


def _stretch(file: PackedFile, name: str, layout: str, rows: range, dim: int, bits: int) -> Tensor:
    """Returns codes f32[rows, D] of a table, or values where the file is row-wise."""
    first, end, codes = rows.start, rows.stop, f"{name}.codes"
    if layout == "rowwise":
        return unpack_rows(torch.from_numpy(file.rows(codes, first, end)), bits)
    if layout == "dense":
        return torch.from_numpy(unpacked(file.rows(codes, first, end), bits, dim))
    values, alive = torch.zeros(end - first, dim), _alive(file, name, first, end)
    before = int(file.rows(f"{name}.rank", first // ROWS_PER_RANK, first // ROWS_PER_RANK + 1)[0])
    live = file.rows(codes, before, before + int(alive.sum()))
    values[torch.from_numpy(alive)] = torch.from_numpy(unpacked(live, bits, dim))
    return values


def _alive(file: PackedFile, name: str, first: int, end: int) -> NDArray[np.bool_]:
    """Returns bool[end - first]: which rows from `first`, a multiple of 8, on are stored."""
    packed = file.rows(f"{name}.bitmap", first // 8, -(-end // 8))
    return np.unpackbits(packed, count=end - first, bitorder="little").astype(np.bool_)


def _bias(file: PackedFile, name: str, size: int, bits: int) -> Tensor:
    if f"{name}.bias" in file.entries:
        return torch.from_numpy(file.tensor(f"{name}.bias"))
    codes = unpacked(file.tensor(f"{name}.bias_codes"), bits, size)
    return torch.from_numpy(codes[0]) * torch.from_numpy(file.tensor(f"{name}.bias_step"))


def _matrix(file: PackedFile, name: str, shape: torch.Size, bits: int) -> Tensor:
    if f"{name}.weight" in file.entries:
        return torch.from_numpy(file.tensor(f"{name}.weight"))
    values = torch.from_numpy(unpacked(file.tensor(f"{name}.codes"), bits, shape[1]))
    values *= torch.from_numpy(file.tensor(f"{name}.step"))[:, None]
    if f"{name}.offset" in file.entries:
        values += torch.from_numpy(file.tensor(f"{name}.offset"))[:, None]
    return values
