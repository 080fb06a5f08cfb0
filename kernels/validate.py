"""Checks a batch where it enters the model: the kernels trust its ids, and a NaN would spread through all weights.

The rectifier of the fastest matrix product turns NaN into 0, so a loss that looks sound says nothing about the rows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .types import Bags, Tables


class BagError(ValueError):
    """An id or an offset that its table does not have; the message names table, position and value."""

    def __init__(self, fault: str, where: str = "", sample: int | None = None, table: int | None = None) -> None:
        super().__init__(f"{where}: {fault}" if where else fault)
        self.fault = fault
        self.sample, self.table = sample, table  # None where the shape of the whole is wrong


class RowError(ValueError):
    """A dense value that is not finite, in `column`, or a label that is not 0 or 1 (`column` None), of a sample."""

    def __init__(self, sample: int, column: int | None, value: float) -> None:
        what = "the label" if column is None else f"dense feature {column}"
        super().__init__(f"sample {sample}: {what} is {value}")
        self.sample, self.column, self.value = sample, column, value


class WeightError(ValueError):
    """A weight of a sample that is negative or not finite."""

    def __init__(self, sample: int, value: float) -> None:
        super().__init__(f"sample {sample}: the weight is {value}")
        self.sample, self.value = sample, value


def validate_bags(
    tables: Tables, bags: Bags, table_names: Sequence[str] | None = None, batch: int | None = None
) -> None:
    """Raises BagError where a kernel would read or write outside of an array.

    `table_names` (else C1, C2, ...) are for the message; `batch` is the number of samples that the other arrays of the
    batch have, and is checked where it is given.
    """
    names = table_names or [f"C{t + 1}" for t in range(tables.num_tables)]
    if bags.ids.dtype != torch.int32:
        raise BagError(f"ids are {bags.ids.dtype}; the kernels take int32")
    samples = _num_samples(tables, bags)
    if batch is not None and samples != batch:
        raise BagError(f"ids and offsets are for {samples} samples; the batch has {batch}")
    if bags.ids.device.type == "cpu" and bags.ids.is_contiguous() and _fits(tables, bags, samples):
        return
    if bags.offsets is None:
        _check_one_hot(tables, bags.ids, names)
    else:
        _check_offsets(bags.ids, bags.offsets, samples, names)
        _check_multi_hot(tables, bags.ids, bags.offsets, samples, names)


def validate_rows(dense: Tensor, label: Tensor) -> None:
    """Raises RowError for the first sample of dense f32[B, F] and label f32[B] that training must not see."""
    if dense.dim() != 2 or label.shape != (dense.shape[0],):
        raise ValueError(f"dense {tuple(dense.shape)} and label {tuple(label.shape)} are not of the same samples")
    if dense.device.type == "cpu" and dense.is_contiguous() and label.is_contiguous() and _rows_fit(dense, label):
        return
    finite, is_label = torch.isfinite(dense), (label == 0) | (label == 1)
    sound = finite.all(1) & is_label
    if bool(sound.all()):
        return
    sample = int((~sound).nonzero()[0])
    if bool(is_label[sample]):
        column = int((~finite[sample]).nonzero()[0])
        raise RowError(sample, column, float(dense[sample, column]))
    raise RowError(sample, None, float(label[sample]))


def validate_weights(weight: Tensor, batch: int) -> None:
    """Raises WeightError for the first of weights f32[B] that cannot say how often its sample counts."""
    if weight.shape != (batch,):
        raise ValueError(f"weights {tuple(weight.shape)} are not of {batch} samples")
    sound = _are_weights(weight)
    if not bool(sound.all()):
        sample = int((~sound).nonzero()[0])
        raise WeightError(sample, float(weight[sample]))


def _are_weights(weight: Tensor) -> Tensor:
    return torch.isfinite(weight) & (weight >= 0)


def sound_samples(tables: Tables, bags: Bags, dense: Tensor, label: Tensor, weight: Tensor | None = None) -> Tensor:
    """Returns which samples bool[B] the model can take; BagError where the shapes or offsets tell no samples apart."""
    samples = _num_samples(tables, bags)
    num_rows = tables.row_offset.diff().to(bags.ids.device)
    sound = torch.isfinite(dense).all(1) & ((label == 0) | (label == 1))
    if weight is not None:
        sound &= _are_weights(weight)
    if bags.offsets is None:
        return sound & ((bags.ids >= 0) & (bags.ids < num_rows[:, None])).all(0)
    _check_offsets(bags.ids, bags.offsets, samples, [f"C{t + 1}" for t in range(tables.num_tables)])
    sizes = bags.offsets.diff()
    sample = torch.arange(samples, device=sizes.device).repeat(tables.num_tables).repeat_interleave(sizes)
    wrong = _outside_of_tables(num_rows, bags.ids, bags.offsets, samples)
    sound[sample[wrong]] = False
    return sound


def runs_are_finite(values: Tensor, first: Tensor, after: Tensor) -> bool:
    """Returns whether elements first[k] to after[k] - 1 of contiguous f32[N] are finite; int64[K] on the CPU."""
    if values.device.type == "cpu":
        from .numba.check import runs_fit

        return bool(runs_fit(values.data_ptr(), first.data_ptr(), after.data_ptr(), first.numel()))
    runs = [values[low:high] for low, high in zip(first.tolist(), after.tolist(), strict=True)]
    return bool(torch.isfinite(torch.cat(runs)).all())


def _rows_fit(dense: Tensor, label: Tensor) -> bool:
    """Makes the same check in one quick pass, which says yes or no."""
    if dense.dtype != torch.float32 or label.dtype != torch.float32:
        return False
    from .numba.check import rows_fit

    return bool(rows_fit(dense.data_ptr(), dense.shape[1], label.data_ptr(), label.numel()))


def _num_samples(tables: Tables, bags: Bags) -> int:
    ids, offsets, num_tables = bags.ids, bags.offsets, tables.num_tables
    if offsets is None:
        if ids.dim() != 2 or ids.shape[0] != num_tables:
            raise BagError(f"one-hot ids are {list(ids.shape)}; {num_tables} tables need [{num_tables}, B]")
        return ids.shape[1]
    if ids.dim() != 1:
        raise BagError(f"multi-hot ids are {list(ids.shape)}; they must be one list for all bags")
    if offsets.dtype != torch.int64 or offsets.dim() != 1:
        raise BagError(f"offsets are {offsets.dtype} {list(offsets.shape)}; the kernels take int64 [T * B + 1]")
    num_bags = offsets.numel() - 1
    if num_bags < 0 or num_bags % num_tables:
        raise BagError(f"{offsets.numel()} offsets; {num_tables} tables need a multiple of {num_tables}, and one more")
    return num_bags // num_tables


def _fits(tables: Tables, bags: Bags, samples: int) -> bool:
    """Makes the same checks in one quick pass, which says yes or no."""
    # Only here: a run on a GPU need not load numba.
    from .numba.check import multi_hot_fits, one_hot_fits

    first_row, num_tables, ids = tables.row_offset.data_ptr(), tables.num_tables, bags.ids.data_ptr()
    if bags.offsets is None:
        return bool(one_hot_fits(first_row, num_tables, ids, samples))
    offsets = bags.offsets.contiguous()
    return bool(multi_hot_fits(first_row, num_tables, ids, bags.ids.numel(), offsets.data_ptr(), samples))


def _check_one_hot(tables: Tables, ids: Tensor, names: Sequence[str]) -> None:
    num_rows = tables.row_offset.diff().to(ids.device)
    if ids.numel() == 0:
        return
    low, high = torch.aminmax(ids, dim=1)
    if bool(((low >= 0) & (high < num_rows)).all()):
        return
    t, b = ((ids < 0) | (ids >= num_rows[:, None])).nonzero()[0].tolist()
    raise BagError(_outside(int(ids[t, b]), int(num_rows[t])), f"{names[t]}, sample {b}", b, t)


def _check_offsets(ids: Tensor, offsets: Tensor, samples: int, names: Sequence[str]) -> None:
    first, last = int(offsets[0]), int(offsets[-1])
    if first != 0 or last != ids.numel():
        raise BagError(f"offsets run from {first} to {last}; they must run from 0 to {ids.numel()}, the number of ids")
    falling = offsets.diff() < 0
    if bool(falling.any()):
        bag = int(falling.nonzero()[0])
        t, b = divmod(bag, samples)
        at, after = int(offsets[bag]), int(offsets[bag + 1])
        raise BagError(f"offset {after} at position {bag + 1} comes after {at}", f"{names[t]}, sample {b}", b, t)


def _check_multi_hot(tables: Tables, ids: Tensor, offsets: Tensor, samples: int, names: Sequence[str]) -> None:
    if ids.numel() == 0:
        return
    num_rows = tables.row_offset.diff().to(ids.device)
    wrong = _outside_of_tables(num_rows, ids, offsets, samples)
    if bool(wrong.any()):
        i = int(wrong.nonzero()[0])
        t, b = divmod(int(torch.searchsorted(offsets, i, right=True)) - 1, samples)
        where = f"{names[t]}, sample {b}, position {i} of the ids"
        raise BagError(_outside(int(ids[i]), int(num_rows[t])), where, b, t)


def _outside_of_tables(num_rows: Tensor, ids: Tensor, offsets: Tensor, samples: int) -> Tensor:
    """Marks the ids, bool[N], that their tables, of num_rows int64[T], do not have; the offsets are checked."""
    return (ids < 0) | (ids >= num_rows.repeat_interleave(offsets[::samples].diff()))


def _outside(value: int, num_rows: int) -> str:
    return f"id {value} is outside of 0 to {num_rows - 1}; fold or remap the ids of this table"
