"""An exported file as a program of ExecuTorch, for phones: the graph of the ONNX file in operators of Core ATen.

Tables stay packed: a row's bytes are copied out (`embedding`), and each is looked up in a table of the codes that it
holds, one scale for a whole table. (ExecuTorch's own `embedding_4bit` wants a scale for each row: 12 bytes a row of 16
values instead of 8.) Layers are in FP32 and computed by XNNPACK: ExecuTorch's plain kernels take 514 ms for 64 rows of
Kaggle's model. The method `forward` takes numbers f32[n, D] and rows of tables int64[n, S], and gives logits and
probabilities f32[n]; the method `model` gives the description, as in docs/serving.md.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding, linear

from dqrm_cpu.base.files import replace_file
from dqrm_cpu.errors import CheckpointError, ConfigError, DeviceError
from dqrm_cpu.export.onnx_graph import LEAST_PROBABILITY, require_whole_codes
from dqrm_cpu.serving.description import (
    BOTTOM,
    CROSS,
    DOT,
    FLOAT_BITS,
    MODEL,
    PLATT,
    PROJECT,
    TOP,
    Calibrating,
    Description,
    LayerDescription,
)
from dqrm_cpu.serving.mapped_file import MappedFile
from dqrm_cpu.serving.stored import finite, row_bytes, unpacked

MOST_ROWS = 2048
"""Of a batch: ExecuTorch plans the memory of a program for the largest one."""


def require_executorch() -> tuple[Any, Any]:
    """Returns executorch.exir and the class that gives layers to XNNPACK; DeviceError where they are not installed."""
    try:
        with _quiet():
            from executorch import exir
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    except ImportError:
        raise DeviceError("programs of ExecuTorch need its package: pip install 'dqrm-cpu[executorch]'") from None
    return exir, XnnpackPartitioner


def write_executorch(file: MappedFile, description: Description, out: Path) -> int:
    """Writes OUT (.pte); returns its bytes. It takes some four times their memory."""
    require_whole_codes(file, description, "programs of ExecuTorch")
    if description.members > 1:
        raise ConfigError(
            f"programs of ExecuTorch hold one model, this is an ensemble of {description.members}: export one of its "
            "members, or take another --format"
        )
    exir, layers_by_xnnpack = require_executorch()
    network = _Network(file, description).eval()
    example = torch.zeros(2, len(description.dense)), torch.zeros(2, len(description.slots), dtype=torch.int64)
    rows = torch.export.Dim("rows", min=1, max=MOST_ROWS)
    with _quiet():
        exported = torch.export.export(network, example, dynamic_shapes=({0: rows}, {0: rows}))
        described = {MODEL: description.to_json()}
        edge = exir.to_edge_transform_and_lower(exported, partitioner=[layers_by_xnnpack()], constant_methods=described)
        content = edge.to_executorch().buffer
    replace_file(out, [content], CheckpointError)
    return len(content)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps to itself what ExecuTorch's packages say about versions of other packages and of CUDA."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


class _Network(torch.nn.Module):
    """Tables, bottom MLP, interaction, cross layers, top MLP, calibration."""

    def __init__(self, file: MappedFile, model: Description) -> None:
        super().__init__()
        self._model = model
        dims = [column.dim for column in model.categories]
        groups = [[t for t, its in enumerate(dims) if its == dim] for dim in dict.fromkeys(dims)]
        self.groups = torch.nn.ModuleList([_TableGroup(file, model, tables) for tables in groups])
        self.bottom, self.project, self.cross, self.top = (
            torch.nn.ModuleList(
                [
                    _Layer(file, layer, model, i > 0 and part in (BOTTOM, TOP))
                    for i, layer in enumerate(model.part(part))
                ]
            )
            for part in (BOTTOM, PROJECT, CROSS, TOP)
        )
        order = np.argsort([t for tables in groups for t in tables])
        self._is_sorted = len(groups) == 1
        self._projected = {layer.name: k for k, layer in enumerate(model.part(PROJECT))}
        self.order = torch.nn.Buffer(torch.from_numpy(order))
        count = 1 + len(model.categories)
        below, beside = np.tril_indices(count, -1)
        self.below = torch.nn.Buffer(torch.from_numpy(below * count + beside))
        self.calibration = None if model.calibration is None else _Calibration(model.calibration)

    def forward(self, dense: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits f32[n] and probabilities f32[n]."""
        x = dense
        for layer in self.bottom:
            x = layer(x)
        features = torch.cat([x.unsqueeze(1), self._rows(ids)], 1)
        if self._model.interaction == DOT:
            dots = torch.matmul(features, features.transpose(1, 2)).flatten(1)
            joined = torch.cat([x, dots.index_select(1, self.below)], 1)
        else:
            joined = features.flatten(1)
        x = self._crossed(joined)
        for layer in self.top:
            x = layer(x)
        logits = x.squeeze(1)
        if self.calibration is not None:
            logits = self.calibration(logits)
        return logits, torch.sigmoid(logits)

    def _rows(self, ids: Tensor) -> Tensor:
        found = []
        for group in self.groups:
            assert isinstance(group, _TableGroup)
            values = group(ids)
            if group.is_projected:
                projections = [self.project[self._projected[f"project.C{t + 1}"]] for t in group.tables]
                values = torch.stack([project(values[:, k]) for k, project in enumerate(projections)], 1)
            found.append(values)
        return found[0] if self._is_sorted else torch.cat(found, 1).index_select(1, self.order)

    def _crossed(self, first: Tensor) -> Tensor:
        x = crossed = first
        for layer in self.cross:
            crossed = layer(crossed)
            if layer.bias is not None:
                x = crossed = first * crossed + x
        return x


def _layers(file: MappedFile, model: Description, part: str) -> torch.nn.ModuleList:
    follows = part in (BOTTOM, TOP)  # another layer, whose outputs are never negative
    return torch.nn.ModuleList(
        [_Layer(file, layer, model, unsigned=follows and i > 0) for i, layer in enumerate(model.part(part))]
    )


class _TableGroup(torch.nn.Module):
    """The tables of one dimension: their codes one behind another, bytes uint8[rows, bytes of a row]."""

    def __init__(self, file: MappedFile, model: Description, tables: list[int]) -> None:
        super().__init__()
        self._dim, bits = model.categories[tables[0]].dim, model.table_bits
        self.tables, self.is_projected = tables, self._dim != model.dim
        self._has_bags, self._is_mean = model.has_bags, model.mean_pooling
        width, counts = row_bytes(self._dim, bits), [model.categories[t].rows for t in tables]
        codes = [file.tensor(f"C{t + 1}.codes", "U8", (model.categories[t].rows, width)) for t in tables]
        self.packed = torch.nn.Buffer(torch.from_numpy(np.concatenate(codes)))
        of_byte = unpacked(np.arange(256, dtype=np.uint8)[:, None], bits, 8 // bits)
        self.of_byte = torch.nn.Buffer(torch.from_numpy(of_byte))
        of_slot = np.array(model.slots)
        places = np.flatnonzero(np.isin(of_slot, tables))
        slots = of_slot[places]
        self._takes_all = len(places) == len(of_slot)
        self.places = torch.nn.Buffer(torch.from_numpy(places))
        first = np.cumsum([0, *counts[:-1]])[np.searchsorted(tables, slots)]
        self.first = torch.nn.Buffer(torch.from_numpy(first))
        self.belongs = torch.nn.Buffer(torch.from_numpy((np.array(tables)[:, None] == slots).astype(np.float32)))
        count = len(model.categories)
        self.scale = torch.nn.Buffer(torch.from_numpy(finite(file, "tables.step", count)[slots, None]))
        has_offset = "tables.offset" in file.entries
        offset = finite(file, "tables.offset", count)[slots, None] if has_offset else None
        self.offset = None if offset is None else torch.nn.Buffer(torch.from_numpy(offset))

    def forward(self, ids: Tensor) -> Tensor:
        """Returns f32[n, tables of the group, its dimension]."""
        if not self._takes_all:
            ids = ids.index_select(1, self.places)
        rows = (ids.clamp(min=0) if self._has_bags else ids) + self.first
        codes = embedding(embedding(rows, self.packed).to(torch.int32), self.of_byte)
        values = codes.flatten(2)[:, :, : self._dim] * self.scale
        if self.offset is not None:
            values = values + self.offset
        if not self._has_bags:
            return values
        there = (ids >= 0).to(torch.float32).unsqueeze(2)
        summed = torch.matmul(self.belongs, values * there)
        return summed / torch.matmul(self.belongs, there).clamp(min=1) if self._is_mean else summed


class _Layer(torch.nn.Module):
    """One layer with its weight in FP32."""

    def __init__(self, file: MappedFile, layer: LayerDescription, model: Description, unsigned: bool) -> None:
        super().__init__()
        self._relu = layer.relu
        self.weight = torch.nn.Buffer(torch.from_numpy(_weight(file, layer)))
        bias = _bias(file, layer, model.bias_bits) if layer.has_bias else None
        self.bias = None if bias is None else torch.nn.Buffer(torch.from_numpy(bias))
        self._codes: tuple[int, int] | None = None
        if model.activation_bits != FLOAT_BITS:
            half = 1 << (model.activation_bits - 1)
            self._codes = (0, 2 * half - 1) if unsigned else (-half, half - 1)
            largest = finite(file, f"{layer.name}.input_max", 1)
            scale = np.maximum(largest / np.float32(self._codes[1]), np.float32(1e-8))
            self.scale = torch.nn.Buffer(torch.from_numpy(scale))
            self.reciprocal = torch.nn.Buffer(torch.from_numpy(np.reciprocal(scale)))

    def forward(self, x: Tensor) -> Tensor:
        """Returns f32[n, outputs] of f32[n, inputs]."""
        if self._codes is not None:
            x = torch.round(x * self.reciprocal).clamp(*self._codes) * self.scale
        y = linear(x, self.weight, self.bias)
        return torch.relu(y) if self._relu else y


class _Calibration(torch.nn.Module):
    """Corrects logits as the description says."""

    def __init__(self, calibration: Calibrating) -> None:
        super().__init__()
        self._is_platt = calibration.kind == PLATT
        knots, values = np.array(calibration.first), np.array(calibration.second)
        if self._is_platt:
            self._slope, self._intercept = float(knots[0]), float(values[0])
            return
        wide = np.diff(knots) > 0
        slopes = np.diff(values)[wide] / np.diff(knots)[wide]
        self.low, self.high, self.slopes = (
            torch.nn.Buffer(torch.from_numpy(one.astype(np.float32)))
            for one in (knots[:-1][wide], knots[1:][wide], slopes)
        )
        self._least = float(values[0])

    def forward(self, logits: Tensor) -> Tensor:
        """Returns the corrected logits f32[n]."""
        if self._is_platt:
            return logits * self._slope + self._intercept
        within = torch.minimum(torch.maximum(logits.unsqueeze(1), self.low), self.high)
        share = ((within - self.low) * self.slopes).sum(1) + self._least
        share = share.clamp(LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
        return torch.log(share / (1 - share))


def _weight(file: MappedFile, layer: LayerDescription) -> Any:
    shape, name = (layer.outputs, layer.inputs), layer.name
    if layer.bits == FLOAT_BITS:
        return finite(file, f"{name}.weight", *shape).copy()
    packed = file.tensor(f"{name}.codes", "U8", (layer.outputs, row_bytes(layer.inputs, layer.bits)))
    values = unpacked(packed, layer.bits, layer.inputs)
    values *= _per_row(file, f"{name}.step")
    if f"{name}.offset" in file.entries:
        values += _per_row(file, f"{name}.offset")
    return values


def _per_row(file: MappedFile, name: str) -> Any:
    shape = file.entries[name].shape if name in file.entries else ()
    return finite(file, name, *shape).reshape(-1, 1)


def _bias(file: MappedFile, layer: LayerDescription, bits: int) -> Any:
    if bits == FLOAT_BITS:
        return finite(file, f"{layer.name}.bias", layer.outputs).copy()
    packed = file.tensor(f"{layer.name}.bias_codes", "U8", (1, row_bytes(layer.outputs, bits)))
    return unpacked(packed, bits, layer.outputs)[0] * finite(file, f"{layer.name}.bias_step", 1)
