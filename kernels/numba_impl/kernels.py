"""The fast CPU kernels behind the interface: unpacks tensors into arrays and calls what numba compiled."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..interface import Tracker
from ..types import UNQUANTIZED, Bags, SparseGrad, Tables
from . import coalesce, gather, init, interaction, merge, pack, scan, update
from .bounds import Bounds, no_bounds
from .rule import Rule
from .tracker import BoundsTracker
from .workspace import Workspace, shard_bits

_SMALLEST_STEP = np.float32(1e-8)
_NO_ACCUMULATOR = np.empty(0, np.float32)
_NO_BOUNDS = no_bounds()


class ForeignTrackerError(TypeError):
    """A tracker of another implementation cannot follow these updates."""


class NumbaKernels:
    """Implements `interface.Kernels` for contiguous CPU tensors. Not for several threads at once: it keeps scratch."""

    name = "numba"

    def __init__(self) -> None:
        self._workspace = Workspace()

    def init_uniform_(self, tables: Tables, seed: int) -> None:
        first_row = tables.row_offset.numpy()
        scale = ((1 / np.maximum(np.diff(first_row), 1)) ** 0.5 / 2**23).astype(np.float32)
        seed_word = np.uint64((seed * 0xD1342543DE82EF95 + 1) % 2**64)
        init.init_uniform(tables.weight.numpy(), first_row, scale, seed_word)

    def gather_quantize_pool(self, tables: Tables, bags: Bags, step: Tensor, bits: int, out: Tensor) -> None:
        half = np.float32(1 << (bits - 1))
        quantizer = gather.Quantizer(step.numpy(), -half, half - np.float32(1), bits != UNQUANTIZED)
        weight, first_row = tables.weight.numpy(), tables.row_offset.numpy()
        if bags.offsets is None:
            gather.gather_one_hot(weight, first_row, bags.ids.numpy(), quantizer, out.numpy())
        else:
            ids, offsets = bags.ids.numpy(), bags.offsets.numpy()
            gather.gather_multi_hot(weight, first_row, ids, offsets, bags.mean, quantizer, out.numpy())

    def interaction_forward(self, features: Tensor, out: Tensor) -> None:
        interaction.interaction_forward(features.numpy(), out.numpy())

    def interaction_backward(self, features: Tensor, grad_out: Tensor, grad_features: Tensor) -> None:
        interaction.interaction_backward(features.numpy(), grad_out.numpy(), grad_features.numpy())

    def coalesce(self, tables: Tables, bags: Bags, grad_features: Tensor) -> SparseGrad:
        lookups, _ = self._workspace.lookups(tables, bags)
        size = lookups.table_start[-1]
        ordered, spare = (
            coalesce.Sorted(
                np.empty(size, np.int32),
                np.empty(size, np.int32),
                np.empty(size, np.int64),
                np.empty(tables.num_tables, np.int64),
            )
            for _ in range(2)
        )
        coalesce.sort_lookups(tables.row_offset.numpy(), lookups, ordered, spare)
        table_ptr = torch.zeros(tables.num_tables + 1, dtype=torch.int64)
        np.cumsum(ordered.num_unique, out=table_ptr.numpy()[1:])
        rows = torch.empty(int(table_ptr[-1]), dtype=torch.int32)
        values = torch.empty(rows.numel(), tables.dim)
        coalesce.sum_sorted(lookups, ordered, grad_features.numpy(), table_ptr.numpy(), rows.numpy(), values.numpy())
        return SparseGrad(table_ptr, rows, values)

    def merge_sparse(self, grads: Sequence[SparseGrad]) -> SparseGrad:
        first = np.cumsum([0, *(grad.rows.numel() for grad in grads)])[:-1]
        values = [grad.values.contiguous() for grad in grads]  # held until their addresses have been read
        ranks = merge.RankGrads(
            np.concatenate([grad.rows.numpy() for grad in grads]),
            np.stack([grad.table_ptr.numpy() for grad in grads]) + first[:, None],
            np.array([value.data_ptr() for value in values], np.int64),
        )
        num_tables = grads[0].table_ptr.numel() - 1
        first_entry = np.zeros(num_tables * merge.PARTS + 1, np.int64)
        merge.count_merged(ranks, first_entry[1:])
        np.cumsum(first_entry, out=first_entry)
        rows = torch.empty(int(first_entry[-1]), dtype=torch.int32)
        merged = torch.empty(rows.numel(), values[0].shape[1])
        merge.write_merged(ranks, first_entry, rows.numpy(), merged.numpy())
        return SparseGrad(torch.from_numpy(first_entry[:: merge.PARTS].copy()), rows, merged)

    def update_sgd_(
        self, tables: Tables, bags: Bags, grad_features: Tensor, lr: float, weight_decay: float, tracker: Tracker | None
    ) -> None:
        rule = Rule(np.float32(lr), np.float32(weight_decay), np.float32(0), _NO_ACCUMULATOR)
        self._update(tables, bags, grad_features, rule, tracker)

    def update_rowwise_adagrad_(
        self,
        tables: Tables,
        accumulator: Tensor,
        bags: Bags,
        grad_features: Tensor,
        lr: float,
        eps: float,
        weight_decay: float,
        tracker: Tracker | None,
    ) -> None:
        rule = Rule(np.float32(lr), np.float32(weight_decay), np.float32(eps), accumulator.numpy())
        self._update(tables, bags, grad_features, rule, tracker)

    def apply_sgd_(
        self, tables: Tables, grad: SparseGrad, lr: float, weight_decay: float, tracker: Tracker | None
    ) -> None:
        _apply(tables, grad, Rule(np.float32(lr), np.float32(weight_decay), np.float32(0), _NO_ACCUMULATOR), tracker)

    def apply_rowwise_adagrad_(
        self,
        tables: Tables,
        accumulator: Tensor,
        grad: SparseGrad,
        lr: float,
        eps: float,
        weight_decay: float,
        tracker: Tracker | None,
    ) -> None:
        rule = Rule(np.float32(lr), np.float32(weight_decay), np.float32(eps), accumulator.numpy())
        _apply(tables, grad, rule, tracker)

    def _update(self, tables: Tables, bags: Bags, grad_features: Tensor, rule: Rule, tracker: Tracker | None) -> None:
        lookups, longest = self._workspace.lookups(tables, bags)
        bits = shard_bits(longest)
        scratch = self._workspace.scratch(longest, tables.dim, tables.num_tables << bits)
        weight, first_row, grad = tables.weight.numpy(), tables.row_offset.numpy(), grad_features.numpy()
        update.update(weight, first_row, lookups, grad, rule, _bounds_of(tracker), scratch, bits)

    def scan_absmax(self, tables: Tables) -> Tensor:
        bits = torch.empty(tables.num_tables, dtype=torch.int32)
        scan.scan_tables(tables.weight.numpy(), tables.row_offset.numpy(), bits.numpy())
        return bits.view(torch.float32)

    def make_tracker(self, tables: Tables) -> Tracker:
        return BoundsTracker(tables)

    def fake_quantize_rows(self, weight: Tensor, bits: int, out: Tensor) -> None:
        if bits == UNQUANTIZED:
            out.copy_(weight)
            return
        limit = np.float32((1 << (bits - 1)) - 1)
        scan.fake_quantize_rows(weight.numpy(), limit, _SMALLEST_STEP, out.numpy())

    def quantize_rows(self, weight: Tensor, step: float, bits: int) -> Tensor:
        codes = torch.empty(weight.shape, dtype=torch.int8 if bits <= 8 else torch.int16)
        limit = np.float32((1 << (bits - 1)) - 1)
        scan.quantize_rows(weight.numpy(), np.float32(step), limit, codes.numpy())
        return codes

    def pack_int4(self, codes: Tensor) -> Tensor:
        packed = torch.empty(codes.shape[0], (codes.shape[1] + 1) // 2, dtype=torch.uint8)
        pack.pack_int4(codes.numpy(), packed.numpy())
        return packed

    def unpack_int4(self, packed: Tensor, dim: int) -> Tensor:
        codes = torch.empty(packed.shape[0], dim, dtype=torch.int8)
        pack.unpack_int4(packed.numpy(), codes.numpy())
        return codes


def _apply(tables: Tables, grad: SparseGrad, rule: Rule, tracker: Tracker | None) -> None:
    update.apply_sparse(
        tables.weight.numpy(),
        tables.row_offset.numpy(),
        grad.table_ptr.numpy(),
        grad.rows.numpy(),
        grad.values.contiguous().numpy(),
        rule,
        _bounds_of(tracker),
    )


def _bounds_of(tracker: Tracker | None) -> Bounds:
    if tracker is None:
        return _NO_BOUNDS
    if not isinstance(tracker, BoundsTracker):
        raise ForeignTrackerError(f"{type(tracker).__name__} is not a tracker of the numba kernels; use make_tracker")
    return tracker.bounds
