"""Transforms of numbers, applied: values as they were read, NaN where one is missing, to what the model sees."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.data.prepare.parse.values import LARGEST_FLOAT32
from dqrm_cpu.data.prepare.row_layout import Layout
from dqrm_cpu.data.store.transform import BUCKETS, IDENTITY, QUANTILE, STANDARD, Transform


def transformed(transform: Transform, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns what becomes of the values f32[n] of a dense column."""
    return _APPLY[transform.kind](values.astype(np.float64), np.array(transform.numbers)).astype(np.float32)


def bucket_ids(transform: Transform, values: NDArray[np.float32]) -> NDArray[np.int32]:
    """Returns the bucket of each value, from 1 on, and 0 where it is missing: int32[n]."""
    ids = 1 + np.searchsorted(np.array(transform.numbers), values.astype(np.float64), side="right")
    return np.where(np.isnan(values), 0, ids).astype(np.int32)


def _identity(values: NDArray[np.float64], _: NDArray[np.float64]) -> NDArray[np.float64]:
    known: NDArray[np.float64] = np.nan_to_num(values, nan=0.0)
    return known


def _standard(values: NDArray[np.float64], numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    mean, deviation = numbers
    with np.errstate(over="ignore"):
        scaled = (values - mean) / deviation
    limited: NDArray[np.float64] = np.clip(np.nan_to_num(scaled, nan=0.0), -LARGEST_FLOAT32, LARGEST_FLOAT32)
    return limited


def _quantile(values: NDArray[np.float64], knots: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns each value's rank, 0 to 1; of a value that several quantiles share, the middle of them. Missing: 0.5."""
    ranks = np.linspace(0.0, 1.0, knots.size)
    low, high = np.searchsorted(knots, values, "left"), np.searchsorted(knots, values, "right") - 1
    below, above = np.clip(high, 0, knots.size - 1), np.clip(low, 0, knots.size - 1)
    width = knots[above] - knots[below]
    share = np.divide(values - knots[below], width, out=np.full(values.size, 0.5), where=width > 0)
    found = ranks[below] + (ranks[above] - ranks[below]) * np.clip(share, 0.0, 1.0)
    return np.where(np.isnan(values), 0.5, found)


_APPLY: Mapping[str, Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]] = {
    IDENTITY: _identity,
    STANDARD: _standard,
    QUANTILE: _quantile,
}


@dataclass(frozen=True)
class RecordTransforms:
    """The transforms of a layout's columns, for records of raw values."""

    layout: Layout
    transforms: tuple[Transform, ...]

    def apply(self, records: NDArray[np.uint32]) -> None:
        """Replaces raw values by what they become, and the columns as they are read by those of the schema."""
        raw, num_dense = self.layout.raw, self.layout.schema.num_dense
        if raw.num_dense == num_dense and not self.transforms:
            return
        values = records[:, : raw.num_dense].view(np.float32)
        behind = records[:, raw.num_dense :].copy()
        buckets = self._transform(values)
        records[:, num_dense : num_dense + raw.num_tables] = behind[:, : raw.num_tables]
        for k, column in enumerate(buckets, num_dense + raw.num_tables):
            records[:, k] = column.view(np.uint32)
        records[:, num_dense + self.layout.schema.num_tables] = behind[:, -1]  # the label

    def columns(self, dense: NDArray[np.float32]) -> tuple[NDArray[np.float32], list[NDArray[np.int32]]]:
        """Returns the dense columns f32[n, D] of the schema, of those as they are read, and the ids of the buckets."""
        if not self.transforms:
            return dense, []
        values = dense.copy()
        buckets = self._transform(values)
        return np.ascontiguousarray(values[:, : self.layout.schema.num_dense]), buckets

    def _transform(self, values: NDArray[np.float32]) -> list[NDArray[np.int32]]:
        """Transforms the raw dense columns f32[n, D] in place; returns the ids of those that become categories."""
        by_name = {transform.name: transform for transform in self.transforms}
        buckets = []
        for d, name in enumerate(self.layout.raw.dense):
            transform = by_name.get(name)
            if transform is not None and transform.kind == BUCKETS:
                buckets.append(bucket_ids(transform, values[:, d]))
            elif transform is not None:
                values[:, d] = transformed(transform, values[:, d])
        return buckets
