"""Reads a packed model back into a model's FP32 weights: what is scored afterwards is what the file holds.

Before anything is used, every tensor's presence, type and shape is compared with the file's own configuration, and that
with the model; scales must be positive, and a sparse file's bits and counts agree. Bytes are checked as they are read.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dqrm_cpu.base.files import begins_with
from dqrm_cpu.config import Config, QuantConfig
from dqrm_cpu.errors import CheckpointError
from dqrm_cpu.export.codes import ROWWISE_BITS, ROWWISE_SCALE_BYTES, unpack_codes, unpack_rows
from dqrm_cpu.export.packed_layout import (
    CORRECTED,
    FORMATS,
    LAYOUTS,
    ROWS_PER_RANK,
    SELF_CONTAINED,
    Expected,
    expected_tensors,
    stored_config,
    stored_description,
    vocabulary_entries,
)
from dqrm_cpu.export.safetensors_reader import PackedFile
from dqrm_cpu.kernels.interface import Kernels
from dqrm_cpu.model.dlrm import Dlrm, keep_rate_correction
from dqrm_cpu.model.layers import mlp_shapes
from dqrm_cpu.model.tables import table_names
from dqrm_cpu.serving.description import entries_by_member

_ROWS_AT_ONCE = 1 << 16  # a multiple of ROWS_PER_RANK


@dataclass(frozen=True)
class PackedModel:
    """The facts of a packed file, whose tensors have been checked against its configuration."""

    path: Path
    config: Config
    layout: str
    identity: str  # of the schema and vocabulary whose ids it scores; empty where that is not known
    num_bytes: int
    stored_rows: int  # rows that have codes
    num_checksums: int  # 0: it was written by an earlier version, and damage cannot be noticed
    is_corrected: bool = False  # for the rows without a click that training did not see, in the bias of the last layer
    is_exported: bool = False  # it says what raw rows are, and holds their vocabulary
    members: int = 1  # of an ensemble

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences for whoever uses it."""
        if self.num_checksums:
            return ()
        return (f"{self.path} was written by an earlier version, without checksums: damage to it cannot be noticed",)


def looks_packed(path: Path) -> bool:
    """Says whether a file claims to be a packed model, by its name or its beginning."""
    return path.suffix == ".safetensors" or begins_with(path, b"{", at=8)


def read_packed(path: Path) -> PackedModel:
    """Returns what the file says of itself; CheckpointError where that does not fit its tensors. Reads little of it."""
    with _opened(path) as (_, about):
        return about


def verify_packed(path: Path) -> PackedModel:
    """Reads all of the file, and returns the same; CheckpointError where any of it is not what was written."""
    with _opened(path) as (file, about):
        file.check_all()
        for member in _members(file, about.members):
            _require_usable(member, about)
        return about


def load_packed(path: Path, model: Dlrm, quant: QuantConfig) -> PackedModel:
    """Fills tables and MLPs of a model of the same shape with the values that the file stands for.

    Its probabilities are those of the traffic, whatever share of rows without a click training saw.
    """
    with _opened(path) as (file, about):
        if about.members > 1:
            raise CheckpointError(f"{path} is an ensemble of {about.members} models, where one is wanted")
        _require_model(about, model, quant)
        _require_usable(file, about)
        for table, first, end, values in _all_rows(file, about, model):
            model.groups.weights[table][first:end] = values.to(model.device)
        maxima = model.inputs.running
        for i, (name, layer, _) in enumerate(model.mlp_layers()):
            layer.weight.copy_(_matrix(file, name, layer.weight.shape, model, quant.mlp_bits))
            if layer.bias.numel():
                layer.bias.copy_(_bias(file, name, layer.bias.numel(), model, quant.mlp_bias_bits))
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
    with _opened(path) as (file, about):
        _require_model(about, model, quant)
        _require_usable(file, about)
        for table, first, end, values in _all_rows(file, about, model):
            expected = formula.values(model.groups.values(table, first, end), scale[table].view(1, 1)).cpu()
            if not torch.allclose(values, expected, rtol=1e-6, atol=1e-7):
                raise CheckpointError(
                    f"{path} does not hold what was written, from row {first} of C{table + 1} on; check the disk"
                )


@contextmanager
def _opened(path: Path) -> Iterator[tuple[PackedFile, PackedModel]]:
    with PackedFile(path) as file:
        version = file.metadata.get("format", "")
        if version not in FORMATS:
            raise CheckpointError(
                f"{path} has format {version[:20] or 'none'}, not {' or '.join(FORMATS)}; "
                "use the dqrm-cpu that wrote it"
            )
        layout = file.metadata.get("layout", "")
        if layout not in LAYOUTS:
            raise file.foreign(f"its layout is {layout[:20] or 'none'}, not one of {', '.join(LAYOUTS)}")
        config, description = stored_config(file), stored_description(file)
        count, vocabulary, stored_rows = 1 if description is None else description.members, description, 0
        for member in _members(file, count):
            _require_layout(member, config, layout, vocabulary_entries(vocabulary))
            codes = [member.entries[f"{name}.codes"] for name in table_names(len(config.model.table_rows))]
            stored_rows += sum(entry.shape[0] for entry in codes)
            vocabulary = None  # is written once
        identity = file.metadata.get("identity", "")
        sizes = file.num_bytes, stored_rows, file.num_checksums
        is_exported = version in SELF_CONTAINED
        about = PackedModel(path, config, layout, identity, *sizes, CORRECTED in file.metadata, is_exported, count)
        yield file, about


def _members(file: PackedFile, count: int) -> Iterator[PackedFile]:
    """Yields the file as each of so many members has it: its tensors by the names of a single model."""
    by_member = entries_by_member(file.entries, count)
    if by_member is None:
        raise file.foreign(f"its description has {count} members, its tensors are of another number")
    for entries in by_member:
        view = copy(file)
        view.entries = entries
        yield view


def _require_layout(file: PackedFile, config: Config, layout: str, vocabulary: Mapping[str, Expected]) -> None:
    """Requires the tensors that the configuration asks for, and no others."""
    if config.quant.method == "none":
        raise file.foreign("its configuration is that of an FP32 model")
    if layout == "rowwise" and config.quant.embedding_bits not in ROWWISE_BITS:
        raise file.foreign(f"row-wise tables have 2 or 4 bits, it names {config.quant.embedding_bits}")
    expected = {**expected_tensors(config, layout), **vocabulary}
    if layout == "sparse" and "tables.offset" in expected:
        raise file.foreign(f"{config.quant.method} has no code for zero, so that no row can be left out")
    for name, one in expected.items():
        entry = file.entries.get(name)
        if entry is None:
            raise file.foreign(f"it lacks {name}")
        shape = tuple(
            actual if wanted is None else wanted for actual, wanted in zip(entry.shape, one.shape, strict=False)
        )
        if entry.dtype != one.dtype or len(entry.shape) != len(one.shape) or entry.shape != shape:
            raise file.foreign(
                f"{name} is {entry.dtype} {list(entry.shape)}, its configuration wants {one.dtype} "
                f"{[('live rows' if wanted is None else wanted) for wanted in one.shape]}"
            )
    unknown = sorted(set(file.entries) - set(expected))
    if unknown:
        raise file.foreign(f"its configuration has no use for {unknown[0][:80]}")


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


def _require_usable(file: PackedFile, about: PackedModel) -> None:
    """Requires positive scales, other numbers finite, and a sparse table's bits, counts and codes that agree."""
    for name, one in expected_tensors(about.config, about.layout).items():
        if one.dtype != "F32":
            continue
        values = file.tensor(name)
        if not np.isfinite(values).all() or (one.is_scale and not (values > 0).all()):
            what = "a scale that is not positive" if one.is_scale else "a number that is not finite"
            raise CheckpointError(f"{about.path}: {name} holds {what}; write it again by dqrm-cpu compress")
    names = table_names(len(about.config.model.table_rows))
    for name, rows in zip(names, about.config.model.table_rows, strict=True):
        if about.layout == "sparse":
            _require_consistent(file, name, rows)
        elif about.layout == "rowwise":
            _require_finite_rows(file, name, rows)


def _require_consistent(file: PackedFile, name: str, rows: int) -> None:
    bits = np.unpackbits(file.tensor(f"{name}.bitmap"), bitorder="little")
    alive, padding = bits[:rows], bits[rows:]
    live_rows = np.add.reduceat(alive, np.arange(0, rows, ROWS_PER_RANK), dtype=np.int64)
    before = np.cumsum(live_rows) - live_rows
    if padding.any() or not np.array_equal(before, file.tensor(f"{name}.rank")):
        raise file.foreign(f"{name}.rank does not count the live rows of {name}.bitmap")
    if file.entries[f"{name}.codes"].shape[0] != int(live_rows.sum()):
        raise file.foreign(f"{name}.codes has not a row for each live row of {name}.bitmap")


def _require_finite_rows(file: PackedFile, name: str, rows: int) -> None:
    for first in range(0, rows, _ROWS_AT_ONCE):
        behind = file.rows(f"{name}.codes", first, min(first + _ROWS_AT_ONCE, rows))[:, -ROWWISE_SCALE_BYTES:]
        if not np.isfinite(np.ascontiguousarray(behind).view(np.float16)).all():
            raise CheckpointError(
                f"{file.path}: {name} holds a scale or bias that is not finite; write it again by dqrm-cpu compress"
            )


def _all_rows(file: PackedFile, about: PackedModel, model: Dlrm) -> Iterator[tuple[int, int, int, Tensor]]:
    """Yields all rows, a stretch of one table at a time: table, first, end, values f32[n, D]."""
    bits, layout = about.config.quant.embedding_bits, about.layout
    offsets = file.tensor("tables.offset") if "tables.offset" in file.entries else None
    scales = None if layout == "rowwise" else file.tensor("tables.step")
    shapes = zip(model.groups.row_offset.diff().tolist(), model.groups.dims, strict=True)
    for t, (name, (rows, dim)) in enumerate(zip(table_names(model.groups.num_tables), shapes, strict=True)):
        for first in range(0, rows, _ROWS_AT_ONCE):
            end = min(first + _ROWS_AT_ONCE, rows)
            values = _stretch(file, name, layout, range(first, end), dim, model.kernels, bits)
            if scales is not None:
                values = values * float(scales[t]) + (0.0 if offsets is None else float(offsets[t]))
            yield t, first, end, values


def _stretch(file: PackedFile, name: str, layout: str, rows: range, dim: int, kernels: Kernels, bits: int) -> Tensor:
    """Returns codes f32[rows, D] of a table, or values where the file is row-wise."""
    first, end, codes = rows.start, rows.stop, f"{name}.codes"
    if layout == "rowwise":
        return unpack_rows(torch.from_numpy(file.rows(codes, first, end)), bits)
    if layout == "dense":
        return unpack_codes(file.rows(codes, first, end), bits, dim, kernels)
    values, alive = torch.zeros(end - first, dim), _alive(file, name, first, end)
    before = int(file.rows(f"{name}.rank", first // ROWS_PER_RANK, first // ROWS_PER_RANK + 1)[0])
    live = file.rows(codes, before, before + int(alive.sum()))
    values[torch.from_numpy(alive)] = unpack_codes(live, bits, dim, kernels)
    return values


def _alive(file: PackedFile, name: str, first: int, end: int) -> NDArray[np.bool_]:
    """Returns bool[end - first]: which rows from `first`, a multiple of 8, on are stored."""
    packed = file.rows(f"{name}.bitmap", first // 8, -(-end // 8))
    return np.unpackbits(packed, count=end - first, bitorder="little").astype(np.bool_)


def _bias(file: PackedFile, name: str, size: int, model: Dlrm, bits: int) -> Tensor:
    if f"{name}.bias" in file.entries:
        return torch.from_numpy(file.tensor(f"{name}.bias"))
    codes = unpack_codes(file.tensor(f"{name}.bias_codes"), bits, size, model.kernels)
    return codes[0] * torch.from_numpy(file.tensor(f"{name}.bias_step"))


def _matrix(file: PackedFile, name: str, shape: torch.Size, model: Dlrm, bits: int) -> Tensor:
    if f"{name}.weight" in file.entries:
        return torch.from_numpy(file.tensor(f"{name}.weight"))
    values = unpack_codes(file.tensor(f"{name}.codes"), bits, shape[1], model.kernels)
    values *= torch.from_numpy(file.tensor(f"{name}.step"))[:, None]
    if f"{name}.offset" in file.entries:
        values += torch.from_numpy(file.tensor(f"{name}.offset"))[:, None]
    return values
