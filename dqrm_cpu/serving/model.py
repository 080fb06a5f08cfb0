"""A model file, opened to score: a raw row in, a probability out."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.base.precision import FP32, INT8, PRODUCTS
from dqrm_cpu.errors import CheckpointError, ConfigError
from dqrm_cpu.kernels.ensemble import mean_logits
from dqrm_cpu.kernels.packed_arrays import RefusedRowsError
from dqrm_cpu.kernels.packed_scoring import CompiledNetwork
from dqrm_cpu.serving.cells import UnusableRowError, bucket_ids, dense_values, read_bags, read_keys, read_numbers
from dqrm_cpu.serving.columns import RowColumns
from dqrm_cpu.serving.description import (
    BAG,
    BANDS,
    BUCKETS,
    MODEL,
    PLATT,
    Calibrating,
    Description,
    DescriptionError,
    member_tensor,
)
from dqrm_cpu.serving.fused import can_compile, compile_network
from dqrm_cpu.serving.ids import NO_ID, IdFinder, keys_tensors
from dqrm_cpu.serving.mapped_file import MappedFile
from dqrm_cpu.serving.network import PackedNetwork

SINGLE, ENSEMBLE, BANDED = "3", "5", "6"
"""The formats of exported files: of one model, of several, and of one or several whose tables are in bands."""

_BATCH = 2048
"""Rows of a forward: features and products of as many stay in the caches."""

_LEAST_PROBABILITY = 1e-6  # of an isotonic map, whose ends may be 0 and 1

__all__ = ["Model", "UnusableRowError"]


class Model:
    """An exported model. It may be used by several threads at a time."""

    def __init__(
        self,
        file: MappedFile,
        description: Description,
        fused: bool | None,
        threads: int | None,
        products: str = FP32,
    ) -> None:
        self._file = file
        self.description = description
        """The columns that the model reads, its shape, and the metrics that it had when it was exported."""
        self._files = file.members(description.members)
        self._networks = [PackedNetwork(one, description, products) for one in self._files]
        tables = self._networks[0].tables  # those of other members have the same rows
        if products == INT8 and not self._networks[0].integer_layers:
            raise ConfigError(
                f"{file.path} has no layer for products in {INT8}: one with codes of 8 bits or fewer "
                f"behind the first of the bottom MLP; take {FP32}"
            )
        self._ids = IdFinder(file, description)
        self._is_bucket = np.array([column.transform == BUCKETS for column in description.numbers])
        slots = np.searchsorted(tables.slots, np.arange(len(description.categories))).tolist()
        numbered = list(zip(range(len(slots)), slots, description.categories, strict=True))
        self._special = [one for one in numbered if one[2].kind in (BAG, BUCKETS)]
        self._single = [t for t, _, category in numbered if category.kind not in (BAG, BUCKETS)]
        self._single_slots = [slots[t] for t in self._single]
        bags = [t for t, column in enumerate(description.categories) if column.kind == BAG]
        self._num_dense, self._num_rows = len(description.dense), tables.num_rows
        self._least_ids = np.where(np.isin(tables.slots, bags), NO_ID, 0)
        self._may_fuse, self._must_fuse = fused is not False, fused is True
        self._threads = threads or len(os.sched_getaffinity(0))
        self._fused: Sequence[CompiledNetwork] | None = None
        self._loading = threading.Lock()

    @classmethod
    def open(
        cls,
        path: str | Path,
        verify: bool = False,
        fused: bool | None = None,
        threads: int | None = None,
        products: str = FP32,
    ) -> Self:
        """Opens a file that `dqrm-cpu export` wrote; CheckpointError where it is another one, or damaged.

        Layers are compared with their checksums; with `verify` tables and vocabulary are read and compared too.
        `fused`: score by compiled code, which takes numba, and seconds when rows are scored for the first time; None:
        where numba is there. `threads`: the most that score a large batch; None: one for each core. `products`: `fp32`,
        or `int8`, which rounds what layers read to 8 bits and is quicker by compiled code; ConfigError where no layer
        has codes of 8 bits or fewer.
        """
        if products not in PRODUCTS:
            raise ConfigError(f"products={products!r}: no such arithmetic; there are {', '.join(PRODUCTS)}")
        file = MappedFile(Path(path))
        description = read_description(file)
        tables = {f"C{t + 1}" for t in range(len(description.categories))}
        large = {name for pair in keys_tensors(description).values() for name in pair}
        parts = [f"{table}.{part}" for table in tables for part in ("codes", "bitmap", "rank")]
        large |= {member_tensor(number, part) for number in range(1, description.members + 1) for part in parts}
        file.require_intact(None if verify else set(file.entries) - large)
        return cls(file, description, fused, threads, products)

    def load_kernels(self) -> None:
        """Loads or compiles now what scores rows, instead of with the first of them."""
        if not self._may_fuse or self._fused is not None:
            return
        with self._loading:
            if self._fused is None and self._may_fuse:
                self._fused = self._compiled_networks()
                self._may_fuse = self._fused is not None

    def _compiled_networks(self) -> Sequence[CompiledNetwork] | None:
        """Makes the compiled forward of each member; None where there is no numba, or none that works here."""
        try:
            if can_compile():
                pairs = zip(self._files, self._networks, strict=True)
                return [compile_network(file, self.description, one, self._threads) for file, one in pairs]
            why = "it is not installed"
        except ImportError as error:
            why = str(error)
        if self._must_fuse:
            raise ConfigError(f"compiled scoring takes numba ({why}); pip install numba, or leave out fused=True")
        return None

    def predict(self, rows: Any) -> NDArray[np.float32]:
        """Returns the probability of a click for each row, f32[n].

        `rows`: a list of dictionaries, a pandas, polars or pyarrow table, or a dictionary of columns. Columns that the
        model does not know are passed over; a value may be missing, a column may not. UnusableRowError for anything
        that cannot be scored.
        """
        return probabilities(self.logits(rows))

    def logits(self, rows: Any) -> NDArray[np.float32]:
        """Returns the logits of the probabilities, f32[n]."""
        return self.logits_of_ids(*self.prepare(rows))

    def prepare(self, rows: Any) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Returns what the network reads of raw rows: numbers f32[n, D], and ids [n, S] of rows of the tables.

        A row has one id of each table; of a column with several values in a cell as many as its limit, the last of them
        -1 where there are fewer.
        """
        columns, description = RowColumns(rows), self.description
        values = read_numbers(description.numbers, (columns.cells(column.name) for column in description.numbers))
        dense = np.ascontiguousarray(dense_values(description.dense, values[~self._is_bucket]).T)
        ids = np.full((columns.num_rows, self._least_ids.size), NO_ID, np.int64)
        buckets = ((description.numbers[k], values[k]) for k in np.flatnonzero(self._is_bucket))
        for t, slot, category in self._special:
            if category.kind == BUCKETS:  # in the order of the numbers
                ids[:, slot] = bucket_ids(*next(buckets))
            else:
                rows_of_values, places, keys = read_bags(category, columns.cells(category.name))
                ids[rows_of_values, slot + places] = self._ids.rows([t], keys[None])[0]
        if self._single:
            categories = [description.categories[t] for t in self._single]
            keys = read_keys(categories, (columns.cells(category.name) for category in categories))
            ids[:, self._single_slots] = self._ids.rows(self._single, keys).T
        return dense, ids

    def require_rows(self, dense: NDArray[np.float32], ids: NDArray[np.integer[Any]]) -> None:
        """Raises UnusableRowError for prepared rows that are none of this model."""
        self._require_shape(dense, ids)
        finite, known = self._soundness(dense, ids)
        if not finite.all():
            raise UnusableRowError("a number is not finite", int(finite.argmin()))
        if not known.all():
            raise UnusableRowError("an id is no row of its table", int(known.argmin()))

    def sound_rows(self, dense: NDArray[np.float32], ids: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
        """Tells which of prepared rows can be scored, bool[n]."""
        self._require_shape(dense, ids)
        return np.logical_and(*self._soundness(dense, ids))

    def _soundness(
        self, dense: NDArray[np.float32], ids: NDArray[np.integer[Any]]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Tells which rows have finite numbers alone, and which of them ids of rows alone."""
        within = (ids >= self._least_ids) & (ids < self._num_rows)
        return np.logical_and.reduce(np.isfinite(dense), axis=1), np.logical_and.reduce(within, axis=1)

    def _require_shape(self, dense: NDArray[np.float32], ids: NDArray[np.integer[Any]]) -> None:
        count, widths = len(dense), (self._num_dense, self._least_ids.size)
        if dense.shape != (count, widths[0]) or ids.shape != (count, widths[1]):
            raise UnusableRowError(f"numbers {dense.shape} and ids {ids.shape}: the model reads {widths} a row")

    def logits_of_ids(self, dense: NDArray[np.float32], ids: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Returns the logits of prepared rows, as `prepare` makes them: dense f32[n, D] and ids [n, S]."""
        self.load_kernels()
        logits = self._plain_logits(dense, ids) if self._fused is None else self._fused_logits(self._fused, dense, ids)
        if not np.isfinite(logits).all():
            raise CheckpointError(f"{self._file.path} gives scores that are not finite; export the model again")
        calibration = self.description.calibration
        return logits if calibration is None else calibrated(calibration, logits)

    def _plain_logits(self, dense: NDArray[np.float32], ids: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Scores with NumPy alone."""
        self.require_rows(dense, ids)
        return mean_logits(_in_batches(network, dense, ids) for network in self._networks)

    def _fused_logits(
        self, fused: Sequence[CompiledNetwork], dense: NDArray[np.float32], ids: NDArray[np.integer[Any]]
    ) -> NDArray[np.float32]:
        """Scores with compiled code, which checks rows as it reads them."""
        self._require_shape(dense, ids)
        try:
            return mean_logits(one.logits(dense, ids) for one in fused)
        except RefusedRowsError:
            # It scores as well, but for what is wrong: that it names.
            return self._plain_logits(dense, ids)


def _in_batches(
    network: PackedNetwork, dense: NDArray[np.float32], ids: NDArray[np.integer[Any]]
) -> NDArray[np.float32]:
    logits = np.empty(len(dense), np.float32)
    for first in range(0, len(dense), _BATCH):
        few = slice(first, first + _BATCH)
        logits[few] = network.logits(dense[few].astype(np.float32, copy=False), ids[few].astype(np.int64))
    return logits


def read_description(file: MappedFile) -> Description:
    """Reads what a file says of itself; CheckpointError where it is no exported model."""
    version = file.metadata.get("format", "none")
    if version not in (SINGLE, ENSEMBLE, BANDED):
        raise file.foreign(f"it has format {version[:20]}, not {SINGLE}, {ENSEMBLE} or {BANDED}")
    try:
        description = Description.from_json(file.metadata.get(MODEL, ""))
    except DescriptionError as error:
        raise file.foreign(str(error)) from error
    if version != format_of(description):
        raise file.foreign(
            f"it has format {version}, the layout {description.layout} and {description.members} members"
        )
    return description


def format_of(description: Description) -> str:
    """Returns the format of the file of a model."""
    if description.layout == BANDS:
        return BANDED
    return SINGLE if description.members == 1 else ENSEMBLE


def probabilities(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns 1 / (1 + exp(-logit)), f32[n], exact to rounding for any logit."""
    wide = logits.astype(np.float64)
    small = np.exp(-np.abs(wide))
    result: NDArray[np.float32] = (np.where(wide >= 0, 1.0, small) / (1.0 + small)).astype(np.float32)
    return result


def calibrated(calibration: Calibrating, logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the corrected logits, f32[n]."""
    wide = logits.astype(np.float64)
    if calibration.kind == PLATT:
        wide = calibration.first[0] * wide + calibration.second[0]
    else:
        values = np.interp(wide, calibration.first, calibration.second)
        values = values.clip(_LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
        wide = np.log(values / (1 - values))
    result: NDArray[np.float32] = wide.astype(np.float32)
    return result
