"""The forward pass of an exported model in NumPy: rows of tables as they lie packed in the file, layers in FP32."""

from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.serving.description import (
    BOTTOM,
    CROSS,
    DENSE,
    DOT,
    FLOAT_BITS,
    PROJECT,
    TOP,
    Description,
    LayerDescription,
)
from dqrm_cpu.serving.mapped_file import MappedFile

_ROWS_PER_RANK = 512
_BITS_OF_BYTE = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1).astype(np.int64)
_NIBBLES = np.array(
    [[low - 16 * (low > 7), high - 16 * (high > 7)] for high in range(16) for low in range(16)], np.int8
)
"""The two codes in a byte, the lower half first."""

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]


class RowLookup(Protocol):
    """Finds the codes of rows of some tables."""

    def __call__(self, ids: Ids) -> NDArray[np.uint8]:
        """Returns uint8[n, S, bytes of a row] of ids [n, S], S of each row of the batch, all of them rows."""


def row_bytes(dim: int, bits: int) -> int:
    """Returns the bytes of a packed row."""
    return -(-dim * bits // 8)


def unpacked(packed: NDArray[np.uint8], bits: int, dim: int) -> Floats:
    """Unpacks codes uint8[..., bytes of a row] to f32[..., dim]: two's complement, the lowest bits first."""
    if bits == 4:
        pairs: NDArray[np.int8] = _NIBBLES[packed].reshape(*packed.shape[:-1], -1)
        return pairs[..., :dim].astype(np.float32)
    if bits in (8, 16):
        return np.ascontiguousarray(packed).view(np.int8 if bits == 8 else "<i2").astype(np.float32)
    single = np.unpackbits(packed, axis=-1, count=dim * bits, bitorder="little").reshape(*packed.shape[:-1], dim, bits)
    values: NDArray[np.int64] = single @ (1 << np.arange(bits)) - (single[..., -1].astype(np.int64) << bits)
    return values.astype(np.float32)


class PackedTables:
    """All tables of a file, never unpacked but for the rows that are asked for."""

    def __init__(self, file: MappedFile, model: Description) -> None:
        self.slots = np.array(model.slots)
        self.num_rows = np.array([column.rows for column in model.categories], np.int64)[self.slots]
        dims = [column.dim for column in model.categories]
        self._groups = [
            _TableGroup(file, model, [t for t, its in enumerate(dims) if its == dim]) for dim in dict.fromkeys(dims)
        ]
        self._projections = {
            int(layer.name.removeprefix("project.C")) - 1: AffineLayer(file, layer, model, unsigned=False)
            for layer in model.part(PROJECT)
        }
        self._shape = len(dims), model.dim

    def pooled(self, ids: Ids) -> Floats:
        """Returns f32[n, T, D] of ids [n, S]: one of each table, of bags as many as the limit, -1 for none."""
        if len(self._groups) == 1 and not self._projections:
            return self._groups[0].pooled(ids)
        features = np.empty((len(ids), *self._shape), np.float32)
        for group in self._groups:
            found = group.pooled(ids[:, group.slots])
            for k, t in enumerate(group.tables):
                project = self._projections.get(t)
                features[:, t] = found[:, k] if project is None else project(found[:, k])
        return features


class _TableGroup:
    """The tables of one dimension."""

    def __init__(self, file: MappedFile, model: Description, tables: list[int]) -> None:
        self.tables = tables
        slots = np.array(model.slots)
        self.slots = np.flatnonzero(np.isin(slots, tables))
        of_slot = slots[self.slots]
        self._bits, self._dim, self._is_mean = model.table_bits, model.categories[tables[0]].dim, model.mean_pooling
        self._has_bags = model.has_bags
        self._starts = np.searchsorted(of_slot, tables)
        count = len(model.categories)
        self._scale = finite(file, "tables.step", count)[of_slot, None]
        has_offset = "tables.offset" in file.entries
        self._offset = finite(file, "tables.offset", count)[of_slot, None] if has_offset else None
        self._codes = (_dense_lookup if model.layout == DENSE else _sparse_lookup)(file, model, tables, of_slot)

    def pooled(self, ids: Ids) -> Floats:
        values = unpacked(self._codes(np.maximum(ids, 0) if self._has_bags else ids), self._bits, self._dim)
        values *= self._scale
        if self._offset is not None:
            values += self._offset
        if not self._has_bags:
            return values
        values[ids < 0] = 0
        summed: Floats = np.add.reduceat(values, self._starts, axis=1)
        if self._is_mean:
            summed /= np.maximum(np.add.reduceat(ids >= 0, self._starts, axis=1, dtype=np.float32), 1)[..., None]
        return summed


def _dense_lookup(file: MappedFile, model: Description, tables: list[int], of_slot: NDArray[np.int64]) -> RowLookup:
    width = row_bytes(model.categories[tables[0]].dim, model.table_bits)
    names = [f"C{t + 1}.codes" for t in tables]
    codes = {
        t: file.tensor(name, "U8", (model.categories[t].rows, width)) for t, name in zip(tables, names, strict=True)
    }
    places = [file.entries[name].data_offsets for name in names]
    if all(end == begin for (_, end), (begin, _) in pairwise(places)):
        # Written one behind another: one gather reads the rows of all tables.
        joined = file.bytes(places[0][0], places[-1][1]).reshape(-1, width)
        first = np.cumsum([0, *(len(codes[t]) for t in tables[:-1])])[np.searchsorted(tables, of_slot)]
        return lambda ids: joined[ids + first]
    return lambda ids: np.stack([codes[t][ids[:, slot]] for slot, t in enumerate(of_slot.tolist())], axis=1)


def _sparse_lookup(file: MappedFile, model: Description, tables: list[int], of_slot: NDArray[np.int64]) -> RowLookup:
    width = row_bytes(model.categories[tables[0]].dim, model.table_bits)
    lookups = [_sparse_table(file, f"C{t + 1}", model.categories[t].rows, width) for t in tables]
    parts = [slice(*np.searchsorted(of_slot, [t, t + 1]).tolist()) for t in tables]
    return lambda ids: np.concatenate(
        [lookup(ids[:, part]) for lookup, part in zip(lookups, parts, strict=True)], axis=1
    )


def _sparse_table(file: MappedFile, name: str, rows: int, width: int) -> RowLookup:
    """Looks up one table of which rows of zeros are left out: a bit for each row, and a count for every 512."""
    bitmap = file.tensor(f"{name}.bitmap", "U8", (-(-rows // 8),))
    counts = file.tensor(f"{name}.rank", "I32", (-(-rows // _ROWS_PER_RANK),))
    codes = file.tensor(f"{name}.codes", "U8", (None, width))
    steps = np.arange(_ROWS_PER_RANK // 8)

    def look_up(ids: Ids) -> NDArray[np.uint8]:
        found = np.zeros((*ids.shape, width), np.uint8)
        alive = (bitmap[ids >> 3] >> (ids & 7).astype(np.uint8)) & 1 > 0
        living = ids[alive]
        if living.size:
            block, byte = living // _ROWS_PER_RANK, living >> 3
            begin = block * (_ROWS_PER_RANK // 8)
            before = begin[:, None] + steps < byte[:, None]
            around = bitmap[np.minimum(begin[:, None] + steps, bitmap.size - 1)]
            whole = np.where(before, _BITS_OF_BYTE[around], 0).sum(1)
            within = _BITS_OF_BYTE[bitmap[byte] & ((1 << (living & 7)) - 1).astype(np.uint8)]
            place = counts[block] + whole + within
            if place.min() < 0 or place.max() >= len(codes):
                raise file.foreign(f"{name}.rank does not count the rows of {name}.bitmap")
            found[alive] = codes[place]
        return found

    return look_up


class PackedNetwork:
    """Tables, bottom MLP, interaction, cross layers, top MLP."""

    def __init__(self, file: MappedFile, model: Description) -> None:
        self._model = model
        self.tables = PackedTables(file, model)
        self._bottom, self._cross, self._top = (
            [AffineLayer(file, layer, model, i > 0 and part != CROSS) for i, layer in enumerate(model.part(part))]
            for part in (BOTTOM, CROSS, TOP)
        )
        self._below = np.tril_indices(1 + len(model.categories), -1)

    def logits(self, dense: Floats, ids: Ids) -> Floats:
        """Returns f32[n] of dense values f32[n, D] and ids [n, S], which are rows of their tables."""
        x = dense
        for layer in self._bottom:
            x = layer(x)
        features = np.concatenate([x[:, None], self.tables.pooled(ids)], axis=1)
        if self._model.interaction == DOT:
            dots = features @ features.transpose(0, 2, 1)
            joined = np.concatenate([x, dots[:, self._below[0], self._below[1]]], axis=1)
        else:
            joined = features.reshape(len(features), -1)
        x = self._crossed(joined)
        for layer in self._top:
            x = layer(x)
        return x[:, 0]

    def _crossed(self, first: Floats) -> Floats:
        x = crossed = first
        for layer in self._cross:
            crossed = layer(crossed)
            if layer.ends_cross:
                x = crossed = first * crossed + x
        return x


class AffineLayer:
    """One layer with its weight in FP32."""

    def __init__(self, file: MappedFile, layer: LayerDescription, model: Description, unsigned: bool) -> None:
        self.ends_cross, self._relu = layer.has_bias, layer.relu
        weight = _stored(file, layer.name, (layer.outputs, layer.inputs), layer.bits, ("weight", "codes", "step"))
        self._weight = np.ascontiguousarray(weight.T)
        self._bias: Any = 0
        if layer.has_bias:
            names = ("bias", "bias_codes", "bias_step")
            self._bias = _stored(file, layer.name, (1, layer.outputs), model.bias_bits, names)[0]
        self._codes: tuple[int, int] | None = None
        if model.activation_bits != FLOAT_BITS:
            half = 1 << (model.activation_bits - 1)
            self._codes = (0, 2 * half - 1) if unsigned else (-half, half - 1)
            largest = finite(file, f"{layer.name}.input_max", 1)
            self._scale = np.maximum(largest / np.float32(self._codes[1]), np.float32(1e-8))

    def __call__(self, x: Floats) -> Floats:
        if self._codes is not None:
            x = np.clip(np.rint(x * np.reciprocal(self._scale)), *self._codes) * self._scale
        y = x @ self._weight
        y += self._bias
        return np.maximum(y, 0, out=y) if self._relu else y


def _stored(file: MappedFile, layer: str, shape: tuple[int, int], bits: int, names: tuple[str, str, str]) -> Floats:
    """Reads a matrix f32[shape]: as it is, or as codes with a scale for each row or for all, and perhaps an offset."""
    plain, packed, step = (f"{layer}.{name}" for name in names)
    if bits == FLOAT_BITS:
        return finite(file, plain, *(shape if names[0] == "weight" else shape[1:])).reshape(shape)
    values = unpacked(file.tensor(packed, "U8", (shape[0], row_bytes(shape[1], bits))), bits, shape[1])
    scales = file.entries[step].shape[0] if step in file.entries and file.entries[step].shape else 1
    values *= finite(file, step, shape[0] if scales > 1 else 1)[:, None]
    offset = f"{layer}.offset"
    if names[0] == "weight" and offset in file.entries:
        values += finite(file, offset, scales)[:, None]
    return values


def finite(file: MappedFile, name: str, *shape: int) -> Floats:
    """Returns floats of a file, all of which must be finite."""
    values: Floats = file.tensor(name, "F32", shape)
    if not np.isfinite(values).all():
        raise file.foreign(f"{name[:80]} holds a number that is not finite")
    return values
