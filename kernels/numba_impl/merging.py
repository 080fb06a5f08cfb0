"""Finds the rows of a sum before anything is summed, and holds the arrays whose addresses the kernels take."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..types import SparseGrad
from . import codes, merge


class Merging:
    """The rows that K ranks have together: rows int32[N_k] of each, pointer int64[K, T + 1] into them."""

    def __init__(self, rows: Sequence[Tensor], pointer: Tensor) -> None:
        self._held = [part.contiguous() for part in rows]
        self._pointer = pointer.contiguous()
        num_ranks, num_tables = len(rows), pointer.shape[1] - 1
        room, num_parts = sum(part.numel() for part in rows), num_tables * merge.PARTS
        self._places = _places(self._held)
        self._ranks = merge.RankRows(self._places.data_ptr(), self._pointer.data_ptr(), num_ranks, num_tables)
        self._entries = torch.empty(room * (1 + num_ranks), dtype=torch.int32)
        self._start = torch.empty(num_parts, dtype=torch.int64)
        self._cursors = torch.empty(num_parts, 3, num_ranks, dtype=torch.int64)
        self._first_entry = torch.zeros(num_parts + 1, dtype=torch.int64)
        self._found = merge.FoundRows(
            self._entries.data_ptr(),
            self._entries[room:].data_ptr(),
            self._start.data_ptr(),
            self._first_entry[1:].data_ptr(),
            self._cursors.data_ptr(),
        )
        merge.find_rows(self._ranks, self._found)
        torch.cumsum(self._first_entry, 0, out=self._first_entry)

    def sum_values(self, values: Sequence[Tensor]) -> SparseGrad:
        """Of f32[N_k, D] of each rank, in the order of the ranks."""
        held = [part.contiguous() for part in values]
        places, (grad, result) = _places(held), self._result(held[0].shape[1])
        merge.sum_values(self._ranks, self._found, places.data_ptr(), result)
        return grad

    def sum_codes(self, sent: Sequence[Tensor], dim: int, code_bytes: int, steps: Tensor) -> SparseGrad:
        """Of codes [N_k, D], as bytes, in int32; times their table's step f32[T]."""
        places, (grad, result) = _places(sent), self._result(dim)
        ranks = codes.RankCodes(places.data_ptr(), code_bytes)
        steps = steps.contiguous()
        codes.sum_codes(self._ranks, self._found, ranks, steps.data_ptr(), result)
        return grad

    def _result(self, dim: int) -> tuple[SparseGrad, merge.Sum]:
        """Memory for the sum, and its addresses."""
        rows = torch.empty(int(self._first_entry[-1]), dtype=torch.int32)
        grad = SparseGrad(self._first_entry[:: merge.PARTS].clone(), rows, torch.empty(rows.numel(), dim))
        places = (self._first_entry.data_ptr(), grad.rows.data_ptr(), grad.values.data_ptr())
        return grad, merge.Sum(*places, dim)


def _places(tensors: Sequence[Tensor]) -> Tensor:
    return torch.tensor([tensor.data_ptr() for tensor in tensors])
