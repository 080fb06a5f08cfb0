"""Sums of rows of a packed table, as PyTorch's `embedding_bag` has them of FP32 rows.

It takes numba, and torch for its threads; servers have neither to load (`packed_scoring`).
"""

from ctypes import addressof, c_int32

import torch
from torch import Tensor

from .jit.simd_nibbles import NIBBLE_MASKS
from .numba import packed_bags
from .numba.packed_rows import CODE_BITS, TablePlaces
from .packed_arrays import RefusedRowsError


class PackedBags:
    """One packed table with one scale: codes of 2 to 16 bits, unpacked and summed as they are looked up.

    :param codes: uint8[rows, ceil(dim * bits / 8)], two's complement, the lowest bits first.
    """

    def __init__(self, codes: Tensor, dim: int, bits: int, scale: float, *, is_mean: bool = False) -> None:
        num_rows, row_bytes = codes.shape
        if bits not in CODE_BITS or row_bytes != -(-dim * bits // 8) or not codes.is_contiguous():
            raise ValueError(
                f"codes {tuple(codes.shape)} are not rows of {dim} codes of {bits} bits, one after another"
            )
        self.dim = dim
        self._codes, self._scale = codes, torch.tensor([scale], dtype=torch.float32)
        places = TablePlaces(
            codes=codes.data_ptr(),
            row_bytes=row_bytes,
            dim=dim,
            bits=bits,
            num_rows=num_rows,
            bitmap=0,
            rank=0,
            stored_rows=num_rows,
            first_slot=0,
            num_slots=0,
            is_bag=1,
            is_mean=int(is_mean),
            scale=self._scale.data_ptr(),
            offset=0,
            rounded_bits=0,
        )
        self._table = torch.tensor(places, dtype=torch.int64)
        self._place = self._table.data_ptr()

    def pool(self, ids: Tensor, offsets: Tensor, out: Tensor | None = None) -> Tensor:
        """Returns f32[B, dim]: the sum or mean of each bag's rows, zeros of a bag without any.

        :param ids: int64[N] or int32[N].
        :param offsets: int64[B + 1], where each bag begins; the last one is where the last bag ends.
        :raises RefusedRowsError: for an id that is no row, or offsets that are not ascending within the ids.
        """
        num_bags = offsets.numel() - 1
        if out is None:
            out = torch.empty(num_bags, self.dim)
        if out.shape != (num_bags, self.dim) or out.dtype != torch.float32 or not out.is_contiguous():
            raise ValueError(f"out {tuple(out.shape)} of {out.dtype} is not f32[{num_bags}, {self.dim}] without gaps")
        is_long = ids.dtype == torch.int64
        if not (is_long or ids.dtype == torch.int32) or offsets.dtype != torch.int64:
            raise ValueError(f"ids are {ids.dtype}, offsets {offsets.dtype}: not int64 or int32, and int64")
        ids, offsets, refused = ids.contiguous(), offsets.contiguous(), c_int32()
        packed_bags.pool_bags(
            self._place,
            ids.data_ptr(),
            is_long,
            ids.numel(),
            offsets.data_ptr(),
            num_bags,
            out.data_ptr(),
            addressof(refused),
            NIBBLE_MASKS,
        )
        if refused.value:
            raise RefusedRowsError
        return out
