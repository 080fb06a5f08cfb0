"""The forward pass of an exported model in NumPy: rows of tables as they lie packed in the file, layers in FP32."""

from itertools import pairwise
from typing import NamedTuple, Protocol

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

ROWS_PER_RANK = 512
"""Rows of a sparse table for which it has a count."""

_BITS_OF_BYTE = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1).astype(np.int64)
_NIBBLES = np.array(
    [[low - 16 * (low > 7), high - 16 * (high > 7)] for high in range(16) for low in range(16)], np.int8
)
"""The two codes in a byte, the lower half first."""

WEIGHT_TENSORS, _BIAS_TENSORS = ("weight", "codes", "step"), ("bias", "bias_codes", "bias_step")
"""The tensors of a layer that hold a matrix in FP32, or its codes and their scale."""

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
        self.projections = {
            int(layer.name.removeprefix("project.C")) - 1: AffineLayer(file, layer, model, unsigned=False)
            for layer in model.part(PROJECT)
        }
        self._shape = len(dims), model.dim

    def pooled(self, ids: Ids) -> Floats:
        """Returns f32[n, T, D] of ids [n, S]: one of each table, of bags as many as the limit, -1 for none."""
        if len(self._groups) == 1 and not self.projections:
            return self._groups[0].pooled(ids)
        features = np.empty((len(ids), *self._shape), np.float32)
        for group in self._groups:
            found = group.pooled(ids[:, group.slots])
            for k, t in enumerate(group.tables):
                project = self.projections.get(t)
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
    codes = {t: dense_codes(file, model, t) for t in tables}
    places = [file.entries[f"C{t + 1}.codes"].data_offsets for t in tables]
    if all(end == begin for (_, end), (begin, _) in pairwise(places)):
        # Written one behind another: one gather reads the rows of all tables.
        joined = file.bytes(places[0][0], places[-1][1]).reshape(-1, width)
        first = np.cumsum([0, *(len(codes[t]) for t in tables[:-1])])[np.searchsorted(tables, of_slot)]
        return lambda ids: joined[ids + first]
    return lambda ids: np.stack([codes[t][ids[:, slot]] for slot, t in enumerate(of_slot.tolist())], axis=1)


def _sparse_lookup(file: MappedFile, model: Description, tables: list[int], of_slot: NDArray[np.int64]) -> RowLookup:
    lookups = [_sparse_lookup_of(file, model, t) for t in tables]
    parts = [slice(*np.searchsorted(of_slot, [t, t + 1]).tolist()) for t in tables]
    return lambda ids: np.concatenate(
        [lookup(ids[:, part]) for lookup, part in zip(lookups, parts, strict=True)], axis=1
    )


def dense_codes(file: MappedFile, model: Description, table: int) -> NDArray[np.uint8]:
    """Returns the codes of all rows of a table, uint8[rows, bytes of a row]."""
    column = model.categories[table]
    return file.tensor(f"C{table + 1}.codes", "U8", (column.rows, row_bytes(column.dim, model.table_bits)))


class SparseTable(NamedTuple):
    """A table of which rows of zeros are left out."""

    bitmap: NDArray[np.uint8]  # a bit for each row: whether it is stored
    counts: NDArray[np.int32]  # of the rows stored before every 512 rows
    codes: NDArray[np.uint8]


def sparse_table(file: MappedFile, model: Description, table: int) -> SparseTable:
    """Returns what a sparse file has of a table."""
    name, column = f"C{table + 1}", model.categories[table]
    return SparseTable(
        file.tensor(f"{name}.bitmap", "U8", (-(-column.rows // 8),)),
        file.tensor(f"{name}.rank", "I32", (-(-column.rows // ROWS_PER_RANK),)),
        file.tensor(f"{name}.codes", "U8", (None, row_bytes(column.dim, model.table_bits))),
    )


def _sparse_lookup_of(file: MappedFile, model: Description, table: int) -> RowLookup:
    """Looks up one table of which rows of zeros are left out."""
    bitmap, counts, codes = sparse_table(file, model, table)
    width = codes.shape[1]
    steps = np.arange(ROWS_PER_RANK // 8)

    def look_up(ids: Ids) -> NDArray[np.uint8]:
        found = np.zeros((*ids.shape, width), np.uint8)
        alive = (bitmap[ids >> 3] >> (ids & 7).astype(np.uint8)) & 1 > 0
        living = ids[alive]
        if living.size:
            block, byte = living // ROWS_PER_RANK, living >> 3
            begin = block * (ROWS_PER_RANK // 8)
            before = begin[:, None] + steps < byte[:, None]
            around = bitmap[np.minimum(begin[:, None] + steps, bitmap.size - 1)]
            whole = np.where(before, _BITS_OF_BYTE[around], 0).sum(1)
            within = _BITS_OF_BYTE[bitmap[byte] & ((1 << (living & 7)) - 1).astype(np.uint8)]
            place = counts[block] + whole + within
            if place.min() < 0 or place.max() >= len(codes):
                raise file.foreign(f"C{table + 1}.rank does not count the rows of C{table + 1}.bitmap")
            found[alive] = codes[place]
        return found

    return look_up


class PackedNetwork:
    """Tables, bottom MLP, interaction, cross layers, top MLP."""

    def __init__(self, file: MappedFile, model: Description) -> None:
        self._model = model
        self.tables = PackedTables(file, model)
        self.bottom, self.cross, self.top = (
            [AffineLayer(file, layer, model, i > 0 and part != CROSS) for i, layer in enumerate(model.part(part))]
            for part in (BOTTOM, CROSS, TOP)
        )
        self._below = np.tril_indices(1 + len(model.categories), -1)

    def logits(self, dense: Floats, ids: Ids) -> Floats:
        """Returns f32[n] of dense values f32[n, D] and ids [n, S], which are rows of their tables."""
        x = dense
        for layer in self.bottom:
            x = layer(x)
        features = np.concatenate([x[:, None], self.tables.pooled(ids)], axis=1)
        if self._model.interaction == DOT:
            dots = features @ features.transpose(0, 2, 1)
            joined = np.concatenate([x, dots[:, self._below[0], self._below[1]]], axis=1)
        else:
            joined = features.reshape(len(features), -1)
        x = self._crossed(joined)
        for layer in self.top:
            x = layer(x)
        return x[:, 0]

    def _crossed(self, first: Floats) -> Floats:
        x = crossed = first
        for layer in self.cross:
            crossed = layer(crossed)
            if layer.description.has_bias:
                x = crossed = first * crossed + x
        return x


class AffineLayer:
    """One layer with its weight in FP32."""

    def __init__(self, file: MappedFile, layer: LayerDescription, model: Description, unsigned: bool) -> None:
        self.description = layer
        self.stored = stored_matrix(file, layer.name, (layer.outputs, layer.inputs), layer.bits, WEIGHT_TENSORS)
        self._relu = layer.relu
        self._weight = np.ascontiguousarray(self.stored.floats().T)
        self.bias: Floats | None = None
        if layer.has_bias:
            shape = (1, layer.outputs)
            self.bias = stored_matrix(file, layer.name, shape, model.bias_bits, _BIAS_TENSORS).floats()[0]
        self.grid: tuple[np.float32, int, int] | None = None
        """Scale, least and largest code of inputs that are rounded."""
        if model.activation_bits != FLOAT_BITS:
            half = 1 << (model.activation_bits - 1)
            least, most = (0, 2 * half - 1) if unsigned else (-half, half - 1)
            largest = finite(file, f"{layer.name}.input_max", 1)[0]
            self.grid = np.maximum(largest / np.float32(most), np.float32(1e-8)), least, most

    def __call__(self, x: Floats) -> Floats:
        if self.grid is not None:
            scale, least, most = self.grid
            x = np.clip(np.rint(x * np.reciprocal(scale)), least, most) * scale
        y = x @ self._weight
        if self.bias is not None:
            y += self.bias
        return np.maximum(y, 0, out=y) if self._relu else y


class StoredMatrix(NamedTuple):
    """A matrix as a file has it: numbers, or codes with a scale for each row or for all, and perhaps an offset."""

    values: Floats  # f32[rows, columns]
    scale: Floats | None = None  # f32[rows or 1]
    offset: Floats | None = None  # the same

    def floats(self) -> Floats:
        """Returns the numbers that the matrix stands for, f32[rows, columns]."""
        if self.scale is None:
            return self.values
        scaled = self.values * self.scale[:, None]
        return scaled if self.offset is None else scaled + self.offset[:, None]


def stored_matrix(
    file: MappedFile, layer: str, shape: tuple[int, int], bits: int, names: tuple[str, str, str]
) -> StoredMatrix:
    """Reads a matrix of this shape from the tensors of a layer that are called so."""
    plain, packed, step = (f"{layer}.{name}" for name in names)
    if bits == FLOAT_BITS:
        return StoredMatrix(finite(file, plain, *(shape if names is WEIGHT_TENSORS else shape[1:])).reshape(shape))
    codes = unpacked(file.tensor(packed, "U8", (shape[0], row_bytes(shape[1], bits))), bits, shape[1])
    scales = file.entries[step].shape[0] if step in file.entries and file.entries[step].shape else 1
    offset = f"{layer}.offset"
    has_offset = names is WEIGHT_TENSORS and offset in file.entries
    return StoredMatrix(
        codes,
        finite(file, step, shape[0] if scales > 1 else 1),
        finite(file, offset, scales) if has_offset else None,
    )


def finite(file: MappedFile, name: str, *shape: int) -> Floats:
    """Returns floats of a file, all of which must be finite."""
    values: Floats = file.tensor(name, "F32", shape)
    if not np.isfinite(values).all():
        raise file.foreign(f"{name[:80]} holds a number that is not finite")
    return values
