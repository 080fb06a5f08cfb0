"""Checks the ids and offsets of a batch: the kernels trust them, and a wrong id would corrupt memory."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .types import Bags, Tables


class BagError(ValueError):
    """An id or an offset that its table does not have; the message names table, position and value."""


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
    """The same checks in one quick pass, which says yes or no."""
    # Only here: a run on a GPU need not load numba.
    from .numba_impl.check import multi_hot_fits, one_hot_fits

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
    raise BagError(_outside(names[t], f"sample {b}", int(ids[t, b]), int(num_rows[t])))


def _check_offsets(ids: Tensor, offsets: Tensor, samples: int, names: Sequence[str]) -> None:
    first, last = int(offsets[0]), int(offsets[-1])
    if first != 0 or last != ids.numel():
        raise BagError(f"offsets run from {first} to {last}; they must run from 0 to {ids.numel()}, the number of ids")
    falling = offsets.diff() < 0
    if bool(falling.any()):
        bag = int(falling.nonzero()[0])
        t, b = divmod(bag, samples)
        at, after = int(offsets[bag]), int(offsets[bag + 1])
        raise BagError(f"{names[t]}, sample {b}: offset {after} at position {bag + 1} comes after {at}")


def _check_multi_hot(tables: Tables, ids: Tensor, offsets: Tensor, samples: int, names: Sequence[str]) -> None:
    if ids.numel() == 0:
        return
    num_rows = tables.row_offset.diff().to(ids.device)
    wrong = (ids < 0) | (ids >= num_rows.repeat_interleave(offsets[::samples].diff()))
    if bool(wrong.any()):
        i = int(wrong.nonzero()[0])
        t, b = divmod(int(torch.searchsorted(offsets, i, right=True)) - 1, samples)
        raise BagError(_outside(names[t], f"sample {b}, position {i} of the ids", int(ids[i]), int(num_rows[t])))


def _outside(name: str, where: str, value: int, num_rows: int) -> str:
    return f"{name}, {where}: id {value} is outside of 0 to {num_rows - 1}; fold or remap the ids of this table"
