"""Transforms of dense columns: fitted on a sample of the training rows, then applied to the records of each shard.

Rows lie in bins by a hash of their number, so that the first bins hold a sample of them by chance, which depends on the
seed alone: not on threads, blocks or interruptions. With up to SAMPLE_ROWS training rows it is all of them.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.data.prepare.output.split import ShardJob
from dqrm_cpu.data.prepare.recorded_layout import recorded_layout
from dqrm_cpu.data.prepare.row_layout import Layout
from dqrm_cpu.data.store.manifest import holds_manifest, read_manifest
from dqrm_cpu.data.store.transform import BUCKETS, IDENTITY, LOG, QUANTILE, STANDARD, Transform
from dqrm_cpu.errors import DataError

SAMPLE_ROWS = 1 << 18
"""Quantiles of so many rows are right to a tenth of a percent of the rows."""

_QUANTILES = 1024


def given_transforms(directory: Path, layout: Layout) -> tuple[Transform, ...] | None:
    """Returns the transforms of the data set whose vocabulary is used; None where no column has one to be fitted.

    DataError where it transforms its columns in another way, or has other columns with several values.
    """
    wanted = _described(layout)
    folder = next((one for one in (directory, directory.resolve().parent) if holds_manifest(one)), None)
    if folder is None:
        if not wanted:
            return None
        raise DataError(
            f"{directory} has no manifest beside its vocabulary, and so no fitted transforms; give the data set itself"
        )
    manifest = read_manifest(folder)
    recorded = recorded_layout(folder, manifest)
    _require_same_limits(folder, recorded, layout)
    found = _described(recorded) if manifest.transforms else {}
    for name in sorted(found.keys() | wanted.keys()):
        there, here = found.get(name, LOG), wanted.get(name, LOG)
        if there != here:
            raise DataError(f"{folder} transforms {name} by {there}, the schema by {here}; they must agree")
    return manifest.transforms if wanted else None


def _require_same_limits(folder: Path, recorded: Layout, layout: Layout) -> None:
    there, here = ({field.name: field.limit for field in one.bags} for one in (recorded, layout))
    for name in sorted(there.keys() | here.keys()):
        first, later = (_values_text(one.get(name)) for one in (there, here))
        if first != later:
            raise DataError(f"{folder} has {first} in a cell of {name}, the schema {later}; [multi] must agree")


def _values_text(limit: int | None) -> str:
    return "one value" if limit is None else f"up to {limit} values"


def _described(layout: Layout) -> dict[str, str]:
    """Returns how a schema would write the transform of each column that is not transformed as usual."""
    buckets = {field.name: f"{BUCKETS}:{field.num_buckets}" for field in layout.fields if field.transform == BUCKETS}
    return {field.name: field.transform for field in layout.fields if field.transform != LOG} | buckets


def fit_transforms(
    layout: Layout, read: Callable[[ShardJob], NDArray[np.uint32]], num_train: int, num_bins: int
) -> tuple[Transform, ...]:
    """Fits the transforms of a layout; `read` returns the records of the training rows of some of the num_bins bins."""
    names = [field.name for field in layout.fields if field.transform != LOG]
    if not names:
        return ()
    last = min(num_bins, math.ceil(num_bins * SAMPLE_ROWS / max(num_train, 1)))
    records = read(ShardJob("", "train", 0, 0, last))
    by_name = {field.name: field for field in layout.fields}
    transforms = []
    for d, name in enumerate(layout.raw.dense):
        if name in names:
            field = by_name[name]
            values = np.ascontiguousarray(records[:, d]).view(np.float32)
            known = np.sort(values[~np.isnan(values)]).astype(np.float64)
            kind, num_buckets = field.transform, field.num_buckets
            transforms.append(Transform(name, kind, _numbers(kind, known, num_buckets)))
    return tuple(transforms)


def _numbers(kind: str, values: NDArray[np.float64], num_buckets: int) -> tuple[float, ...]:
    """Returns the numbers of a transform for values f64[n], which rise."""
    if kind == IDENTITY:
        return ()
    if kind == STANDARD:
        return _mean_and_deviation(values.tolist())
    if kind == QUANTILE:
        if not values.size:
            return (0.0,)
        return tuple(np.quantile(values, np.linspace(0.0, 1.0, _QUANTILES + 1)).tolist())
    if not values.size:
        return ()
    shares = np.arange(1, num_buckets) / num_buckets
    return tuple(np.unique(np.quantile(values, shares, method="inverted_cdf")).tolist())


def _mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Returns (0, 1) of no values, and a deviation of 1 where all are the same."""
    if not values:
        return 0.0, 1.0
    mean = math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    return mean, deviation or 1.0
