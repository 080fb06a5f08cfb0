"""The forward pass of an exported model in NumPy: rows of tables as they lie packed in the file, layers in FP32."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.base.precision import FP32, INT8
from dqrm_cpu.serving.bands import banded_tables
from dqrm_cpu.serving.description import BANDS, BOTTOM, CROSS, DENSE, DOT, PROJECT, TOP, Description
from dqrm_cpu.serving.layers import AffineLayer, FloatLayer, IntegerLayer
from dqrm_cpu.serving.mapped_file import MappedFile
from dqrm_cpu.serving.stored import Floats, finite, row_bytes, unpacked

ROWS_PER_RANK = 512
"""Rows of a sparse table for which it has a count."""

_BITS_OF_BYTE = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1).astype(np.int64)
Ids = NDArray[np.int64]
Layer = FloatLayer | IntegerLayer


class RowLookup(Protocol):
    """Finds the codes of rows of some tables."""

    def __call__(self, ids: Ids) -> NDArray[np.uint8]:
        """Returns uint8[n, S, bytes of a row] of ids [n, S], S of each row of the batch, all of them rows."""


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
        self._has_bags, self._is_mean = model.has_bags, model.mean_pooling
        self._starts = np.searchsorted(of_slot, tables)
        self._values = (_banded_values if model.layout == BANDS else _coded_values)(file, model, tables, of_slot)

    def pooled(self, ids: Ids) -> Floats:
        values = self._values(np.maximum(ids, 0) if self._has_bags else ids)
        if not self._has_bags:
            return values
        values[ids < 0] = 0
        summed: Floats = np.add.reduceat(values, self._starts, axis=1)
        if self._is_mean:
            summed /= np.maximum(np.add.reduceat(ids >= 0, self._starts, axis=1, dtype=np.float32), 1)[..., None]
        return summed


def _coded_values(
    file: MappedFile, model: Description, tables: list[int], of_slot: NDArray[np.int64]
) -> Callable[[Ids], Floats]:
    """Returns what makes f32[n, S, D] of ids, where all tables have codes of the same bits."""
    bits, dim, count = model.table_bits, model.categories[tables[0]].dim, len(model.categories)
    scale = finite(file, "tables.step", count)[of_slot, None]
    has_offset = "tables.offset" in file.entries
    offset = finite(file, "tables.offset", count)[of_slot, None] if has_offset else None
    look_up = (_dense_lookup if model.layout == DENSE else _sparse_lookup)(file, model, tables, of_slot)

    def values(ids: Ids) -> Floats:
        found = unpacked(look_up(ids), bits, dim)
        found *= scale
        if offset is not None:
            found += offset
        return found

    return values


def _banded_values(
    file: MappedFile, model: Description, tables: list[int], of_slot: NDArray[np.int64]
) -> Callable[[Ids], Floats]:
    """Returns what makes f32[n, S, D] of ids, where each row has the bits of its band."""
    dim, of_model = model.categories[tables[0]].dim, banded_tables(file, model)
    banded = [of_model[t] for t in tables]
    parts = _slots_by_table(tables, of_slot)
    return lambda ids: np.concatenate(
        [table.values(ids[:, part], dim) for table, part in zip(banded, parts, strict=True)], axis=1
    )


def _slots_by_table(tables: list[int], of_slot: NDArray[np.int64]) -> list[slice]:
    return [slice(*np.searchsorted(of_slot, [t, t + 1]).tolist()) for t in tables]


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
    parts = _slots_by_table(tables, of_slot)
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


class PlainNetwork:
    """Tables, bottom MLP, interaction, cross layers, top MLP."""

    def __init__(
        self,
        model: Description,
        pooled: Callable[[Ids], Floats],
        bottom: Sequence[Layer],
        cross: Sequence[Layer],
        top: Sequence[Layer],
    ) -> None:
        """`pooled`: makes f32[n, T, D] of ids [n, S], the vectors of all tables that interact."""
        self._model, self._pooled = model, pooled
        self.bottom, self.cross, self.top = bottom, cross, top
        self._below = np.tril_indices(1 + len(model.categories), -1)

    def logits(self, dense: Floats, ids: Ids) -> Floats:
        """Returns f32[n] of dense values f32[n, D] and ids [n, S], which are rows of their tables."""
        x = dense
        for layer in self.bottom:
            x = layer(x)
        features = np.concatenate([x[:, None], self._pooled(ids)], axis=1)
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


class PackedNetwork(PlainNetwork):
    """The network of a file."""

    def __init__(self, file: MappedFile, model: Description, products: str = FP32) -> None:
        self._has_integers = products == INT8
        self._model = model
        self.tables = PackedTables(file, model)
        super().__init__(model, self.tables.pooled, *(self._layers(file, part) for part in (BOTTOM, CROSS, TOP)))

    @property
    def integer_layers(self) -> list[str]:
        """The names of the layers that multiply whole numbers."""
        layers = (*self.bottom, *self.cross, *self.top)
        return [layer.description.name for layer in layers if isinstance(layer, IntegerLayer)]

    def _layers(self, file: MappedFile, part: str) -> list[Layer]:
        """Reads the layers of a part; with integer products only what reads the raw numbers is not rounded."""
        layers: list[Layer] = []
        for i, about in enumerate(self._model.part(part)):
            layer = AffineLayer(file, about, self._model, i > 0 and part != CROSS)
            reads_numbers = part == BOTTOM and i == 0
            if not self._has_integers or reads_numbers or not layer.takes_integers:
                layers.append(layer)
                continue
            # The dense vector stands before dots, or rows of tables, of another size.
            reads_joined = part == CROSS or (part == TOP and i == 0)
            first = min(self._model.dim, about.inputs) if reads_joined else about.inputs
            layers.append(IntegerLayer(layer, i > 0 and layers[i - 1].description.relu, first))
        return layers
