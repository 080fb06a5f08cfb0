"""One endless stream of generated click data, each row made from (seed, row) alone."""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dqrm_cpu.data.batch import Batch
from dqrm_cpu.data.synthetic import encoding, kernel
from dqrm_cpu.data.synthetic.click_model import BASE_CLICK_RATE, EffectSizes
from dqrm_cpu.data.synthetic.world import Folding, RawArrays, StreamKeys, World, assign_roles, build_world
from dqrm_cpu.errors import DataError

_CALIBRATION_START = 1 << 62
_CALIBRATION_ROWS = 1 << 17
_LAST_ROW = _CALIBRATION_START + _CALIBRATION_ROWS
_MAX_ROWS = 2**31 - 1
_AS_THE_FIELDS_HAVE_THEM = EffectSizes()


class RawRows(NamedTuple):
    """Arrays of n rows before they are encoded, as a raw click log holds them."""

    integers: NDArray[np.int32]  # [n, D]; kernel.MISSING where missing
    ranks: NDArray[np.int32]  # [T, n] rank of the category in its field, 0 the commonest; -1 where missing
    label: NDArray[np.float32]  # [n]


class SyntheticClicks:
    """Rows numbered from 0 without end; the same seed and shape give the same rows, however they are asked for."""

    def __init__(
        self,
        table_rows: tuple[int, ...],
        num_dense: int,
        seed: int,
        max_bag_size: int = 1,
        effects: EffectSizes = _AS_THE_FIELDS_HAVE_THEM,
    ) -> None:
        _check_shape(table_rows, num_dense, max_bag_size)
        self.table_rows = table_rows
        self.num_dense = num_dense
        self.seed = seed
        self.max_bag_size = max_bag_size
        self.roles = assign_roles(table_rows)
        self._key = np.uint64(seed % 2**64)
        first_id = np.asarray([role.field.first_id for role in self.roles], np.int64)
        self._folding = Folding(first_id, np.asarray(table_rows, np.int64))
        self._world, self.bias = _calibrated_world(tuple(table_rows), num_dense, seed % 2**64, effects)

    def rows(self, start: int, stop: int) -> Batch:
        """Returns rows start to stop - 1."""
        raw = self._draw(start, stop)
        dense = torch.empty(stop - start, self.num_dense)
        encoding.encode_dense(raw.integers, dense.numpy())
        if self.max_bag_size > 1:
            ids, offsets = self._bags(start, raw.ranks)
            return Batch(dense, ids, offsets, torch.from_numpy(raw.label))
        ids = torch.empty(len(self.table_rows), stop - start, dtype=torch.int32)
        encoding.encode_ids(self._folding, raw.ranks, ids.numpy())
        return Batch(dense, ids, None, torch.from_numpy(raw.label))

    def fill(self, start: int, dense: Tensor, ids: Tensor, label: Tensor) -> None:
        """Writes rows from start on into dense f32[n, D], ids int32[T, n] and label f32[n]; one id a bag only."""
        self._check_targets(dense, ids, label)
        raw = self._draw(start, start + label.numel())
        encoding.encode_dense(raw.integers, dense.numpy())
        encoding.encode_ids(self._folding, raw.ranks, ids.numpy())
        label.copy_(torch.from_numpy(raw.label))

    def raw_rows(self, start: int, stop: int) -> RawRows:
        """Returns rows start to stop - 1 before they are encoded; ranks are not folded to the tables."""
        raw = self._draw(start, stop)
        return RawRows(raw.integers, raw.ranks, raw.label)

    def click_rates(self, start: int, stop: int) -> NDArray[np.float64]:
        """Returns the planted probability of a click of each row: what the best possible model would predict."""
        return _logistic(self._draw(start, stop).log_odds.astype(np.float64) + self.bias)

    def _draw(self, start: int, stop: int) -> RawArrays:
        if not 0 <= start <= stop <= _LAST_ROW:
            raise DataError(f"rows {start} to {stop} of the generated data: want 0 <= start <= stop <= {_LAST_ROW}")
        shape = (len(self.table_rows), self.num_dense)
        return _draw_rows(self._world, StreamKeys(self._key, start, self.bias), shape, stop - start)

    def _bags(self, start: int, ranks: NDArray[np.int32]) -> tuple[Tensor, Tensor]:
        num_tables, num_rows = ranks.shape
        keys = StreamKeys(self._key, start, 0.0)
        sizes = np.empty(num_tables * num_rows, np.int64)
        encoding.draw_bag_sizes(keys, self.max_bag_size, self._world.categories, sizes)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        ids = np.empty(int(offsets[-1]), np.int32)
        encoding.fill_bags(keys, self._world, self._folding, encoding.DrawnBags(ranks, offsets, ids))
        return torch.from_numpy(ids), torch.from_numpy(offsets)

    def _check_targets(self, dense: Tensor, ids: Tensor, label: Tensor) -> None:
        if self.max_bag_size > 1:
            raise DataError("fill() writes one id a bag, but max_bag_size is above 1: use rows()")
        count = label.numel()
        wanted = {"dense": (count, self.num_dense), "ids": (len(self.table_rows), count), "label": (count,)}
        for (name, shape), tensor in zip(wanted.items(), (dense, ids, label), strict=True):
            kind = torch.int32 if name == "ids" else torch.float32
            if tuple(tensor.shape) != shape or tensor.dtype != kind or tensor.device.type != "cpu":
                actual = f"{tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
                raise DataError(f"fill() wants {name} as {kind} {shape} on the CPU, not {actual}")


@lru_cache(maxsize=16)
def _calibrated_world(
    table_rows: tuple[int, ...], num_dense: int, seed_key: int, effects: EffectSizes
) -> tuple[World, float]:
    """Builds the world, and finds the bias with which the mean click rate is the measured one, to four digits.

    It takes a tenth of a second and more, and a process that trains often mostly does so on the same rows.
    """
    world = build_world(assign_roles(table_rows), table_rows, num_dense, seed_key, effects)
    keys = StreamKeys(np.uint64(seed_key), _CALIBRATION_START, 0.0)
    raw = _draw_rows(world, keys, (len(table_rows), num_dense), _CALIBRATION_ROWS)
    return world, _bias(raw.log_odds.astype(np.float64))


def _bias(log_odds: NDArray[np.float64]) -> float:
    """Bisects for the bias, to four digits; Newton's method first says on which side of it most of the middles lie."""
    below, above = -20.0, 20.0
    guess = math.log(BASE_CLICK_RATE / (1.0 - BASE_CLICK_RATE)) - log_odds.mean()
    for _ in range(8):
        rates = _logistic(log_odds + guess)
        step = (BASE_CLICK_RATE - rates.mean()) / max(0.01, (rates * (1.0 - rates)).mean())
        guess += step
        if abs(step) < 1e-3:  # the next one would be some 1e-6
            break
    for sure in (guess - 3e-6, guess + 3e-6):
        if _logistic(log_odds + sure).mean() < BASE_CLICK_RATE:
            below = max(below, sure)
        else:
            above = min(above, sure)
    low, high = -20.0, 20.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        if middle <= below or (middle < above and _logistic(log_odds + middle).mean() < BASE_CLICK_RATE):
            low = middle
        else:
            high = middle
    return round(low, 4)


def _draw_rows(world: World, keys: StreamKeys, shape: tuple[int, int], count: int) -> RawArrays:
    """Draws `count` rows from the one that `keys` name; `shape` says how many tables and dense features there are."""
    num_tables, num_dense = shape
    out = RawArrays(
        integers=np.empty((count, num_dense), np.int32),
        ranks=np.empty((num_tables, count), np.int32),
        log_odds=np.empty(count, np.float32),
        label=np.empty(count, np.float32),
    )
    kernel.draw_rows(keys, world, out)
    return out


def _logistic(log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1.0 / (1.0 + np.exp(-log_odds)))


def _check_shape(table_rows: tuple[int, ...], num_dense: int, max_bag_size: int) -> None:
    for t, rows in enumerate(table_rows):
        if not 1 <= rows <= _MAX_ROWS:
            raise DataError(f"table {t} of the generated data has {rows} rows: want 1 to {_MAX_ROWS}")
    if not table_rows:
        raise DataError("generated data without a table: give at least one number of rows")
    if num_dense < 0:
        raise DataError(f"generated data with {num_dense} dense features: want 0 or more")
    if max_bag_size < 1:
        raise DataError(f"max_bag_size {max_bag_size} of the generated data: want 1 or more")
