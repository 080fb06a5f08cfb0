"""The fast CPU kernels behind the interface: hands addresses of tensors to what numba compiled."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..hashing import weights_word
from ..interface import ForeignTrackerError, Tracker
from ..jit.arena import arena_of
from ..master_rows import FP32
from ..types import UNQUANTIZED, Bags, RowCopy, SparseGrad, Tables, UpdateRule
from . import coalesce, gather, interaction, mlp, random_values, stored_rows, update
from .absmax_tracker import NO_BOUNDS, SIGHTING_LONGS, AbsmaxTracker, Bounds, scan_tables
from .codes import quantize_rows
from .lookups import Pooled
from .merge import MergedRows
from .workspace import KernelWorkspace, shard_bits

_FLOATS_PER_COPY = 1 << 13


class NumbaKernels:
    """Implements `interface.Kernels` for contiguous CPU tensors. Not for several threads at once: it keeps scratch."""

    name = "numba"

    def __init__(self) -> None:
        self._workspace = KernelWorkspace()

    def init_uniform_(self, tables: Tables, seed: int) -> None:
        self._initialize(tables, tables.row_offset.diff().numpy(), seed, 0)

    def initial_rows(self, seed: int, first: int, num_rows: int, out: Tensor) -> None:
        self._initialize(Tables(out, torch.tensor([0, out.shape[0]])), np.array([num_rows]), seed, first)

    def _initialize(self, tables: Tables, num_rows: NDArray[np.int64], seed: int, first: int) -> None:
        """Rows that count from `first`, of tables of num_rows int64[T] rows."""
        scale = torch.from_numpy(((1 / np.maximum(num_rows, 1)) ** 0.5 / 2**23).astype(np.float32))
        arena, word = arena_of(tables), np.uint64(weights_word(seed, first))
        if tables.weight.dtype == FP32:
            random_values.init_uniform(arena, scale.data_ptr(), word)
        else:
            room = torch.empty(tables.weight.shape[0] // random_values.ROWS_PER_ITEM + 1, tables.dim)
            stored_rows.init_stored(arena, scale.data_ptr(), word, room.data_ptr())

    def gather_quantize_pool(self, tables: Tables, bags: Bags, scale: Tensor, bits: int, out: Tensor) -> None:
        half = np.float32(1 << (bits - 1))
        quantizer = gather.Quantizer(scale.data_ptr(), -half, half - np.float32(1), int(bits != UNQUANTIZED))
        arena, ids, batch, result = arena_of(tables), bags.ids.data_ptr(), out.shape[0], _pooled(out)
        if bags.offsets is None:
            gather.gather_one_hot(arena, ids, batch, quantizer, result)
        else:
            offsets = bags.offsets.data_ptr()
            gather.gather_multi_hot(arena, ids, offsets, batch, int(bags.mean), quantizer, result)

    def interaction_forward(self, features: Tensor, out: Tensor) -> None:
        shape, scratch = self._interaction(features)
        interaction.interaction_forward(features.data_ptr(), shape, out.data_ptr(), scratch)

    def interaction_backward(self, features: Tensor, grad_out: Tensor, grad_features: Tensor) -> None:
        shape, scratch = self._interaction(features)
        places = (grad_out.data_ptr(), grad_features.data_ptr())
        interaction.interaction_backward(features.data_ptr(), shape, *places, scratch)

    def _interaction(self, features: Tensor) -> tuple[interaction.InteractionShape, interaction.InteractionScratch]:
        batch, num_features, dim = features.shape
        threads, (sample, width) = torch.get_num_threads(), interaction.scratch_sizes(num_features, dim)
        place = self._workspace.floats(threads * (2 * sample + width))
        scratch = interaction.InteractionScratch(place, sample, width, threads)
        return interaction.InteractionShape(batch, num_features, dim, _is_bf16(features)), scratch

    def coalesce(self, tables: Tables, bags: Bags, grad_features: Tensor) -> SparseGrad:
        lookups, _ = self._workspace.lookups(tables, bags)
        arena, size, num_tables = arena_of(tables), bags.ids.numel(), tables.num_tables
        words = torch.empty(4, size, dtype=torch.int32)
        start, digits = torch.empty(size, dtype=torch.int64), torch.empty(num_tables, 256, dtype=torch.int64)
        table_ptr = torch.zeros(num_tables + 1, dtype=torch.int64)
        num_unique = torch.empty(num_tables, dtype=torch.int64)
        row, position, spare_row, spare_position = (words[i].data_ptr() for i in range(4))
        ordered = coalesce.Sorted(
            row, position, spare_row, spare_position, start.data_ptr(), num_unique.data_ptr(), digits.data_ptr()
        )
        coalesce.sort_lookups(arena, lookups, ordered)
        torch.cumsum(num_unique, 0, out=table_ptr[1:])
        rows = torch.empty(int(table_ptr[-1]), dtype=torch.int32)
        values = torch.empty(rows.numel(), tables.dim)
        result = coalesce.Coalesced(table_ptr.data_ptr(), rows.data_ptr(), values.data_ptr())
        coalesce.sum_sorted(arena, lookups, ordered, _pooled(grad_features), result)
        return SparseGrad(table_ptr, rows, values)

    def merge_sparse(self, grads: Sequence[SparseGrad]) -> SparseGrad:
        merging = MergedRows([grad.rows for grad in grads], torch.stack([grad.table_ptr for grad in grads]))
        return merging.sum_values([grad.values for grad in grads])

    def update_(
        self, tables: Tables, bags: Bags, grad_features: Tensor, rule: UpdateRule, tracker: Tracker | None
    ) -> None:
        lookups, longest = self._workspace.lookups(tables, bags)
        bits = shard_bits(longest)
        scratch = self._workspace.scratch(longest, tables.dim, tables.num_tables << bits)
        pooled, bounds = _pooled(grad_features), _bounds_of(tracker)
        update.update(arena_of(tables), lookups, pooled, _rule(rule), bounds, scratch, bits)

    def update_sparse_(self, tables: Tables, grad: SparseGrad, rule: UpdateRule, tracker: Tracker | None) -> None:
        first_item = torch.zeros(tables.num_tables + 1, dtype=torch.int64)
        items = (grad.table_ptr.diff() + update.ENTRIES_PER_ITEM - 1) // update.ENTRIES_PER_ITEM
        torch.cumsum(items, 0, out=first_item[1:])
        sightings = torch.empty(int(first_item[-1]), SIGHTING_LONGS, dtype=torch.int64)
        room = torch.empty(0 if tables.weight.dtype == FP32 else sightings.shape[0] * tables.dim)
        # Named, so that a copy that had to be made lives until the kernel is done.
        arrays = (grad.table_ptr, grad.rows.contiguous(), grad.values.contiguous(), first_item, sightings, room)
        entries = update.Entries(*(array.data_ptr() for array in arrays))
        update.update_sparse(arena_of(tables), entries, _rule(rule), _bounds_of(tracker))

    def scan_absmax(self, tables: Tables) -> Tensor:
        absmax = torch.empty(tables.num_tables)
        scan_tables(arena_of(tables), absmax.data_ptr())
        return absmax

    def make_tracker(self, tables: Tables) -> Tracker:
        return AbsmaxTracker(tables)

    def uniform_scales(self, absmax: Tensor, bits: int, scale: Tensor) -> bool:
        limit = np.float32((1 << (bits - 1)) - 1)
        return bool(mlp.uniform_scales(absmax.data_ptr(), scale.data_ptr(), absmax.numel(), limit))

    def click_loss(
        self,
        logits: Tensor,
        labels: Tensor,
        share: float,
        loss: Tensor,
        grad: Tensor,
        weights: Tensor | None = None,
    ) -> None:
        logits, labels = logits.contiguous(), labels.contiguous()
        batch = logits.numel()
        each = None if weights is None else weights.contiguous()
        weights_at = 0 if each is None else each.data_ptr()
        clicks = mlp.Clicks(logits.data_ptr(), labels.data_ptr(), weights_at, grad.data_ptr(), batch)
        partial = self._workspace.floats(mlp.loss_scratch(batch))
        mlp.click_loss(clicks, share, partial, loss.data_ptr())

    def row_copier(self, copies: Sequence[RowCopy]) -> Callable[[], None]:
        return _RowCopier(copies)

    def round_stochastic(self, values: Tensor, rows: Tensor, pointer: Tensor, scale: Tensor, key: int) -> Tensor:
        return random_values.rounded(values, rows, pointer, scale, key)

    def rectify_backward_(
        self, grad: Tensor, activation: Tensor | None, bias: Tensor, transposed: Tensor | None
    ) -> None:
        batch, width = grad.shape
        gate = 0 if activation is None else activation.data_ptr()
        target, stride = (0, 0) if transposed is None else (transposed.data_ptr(), transposed.shape[1])
        places = (grad.data_ptr(), gate, target, bias.data_ptr())
        partial = self._workspace.floats(mlp.rectify_scratch(batch, width))
        mlp.rectify_backward(mlp.Layer(*places, batch, width, stride, _is_bf16(grad)), partial)

    def quantize_rows(self, weight: Tensor, scale: float, bits: int) -> Tensor:
        codes = torch.empty(weight.shape, dtype=torch.int8 if bits <= 8 else torch.int16)
        limit, place, size = np.float32((1 << (bits - 1)) - 1), codes.data_ptr(), codes.element_size()
        quantize_rows(weight.data_ptr(), *weight.shape, np.float32(scale), limit, place, size)
        return codes


class _RowCopier:
    """Holds the tensors whose addresses it knows."""

    def __init__(self, copies: Sequence[RowCopy]) -> None:
        self._copies = tuple(copies)
        self._items = torch.tensor(list(_copy_items(copies)), dtype=torch.int64)

    def __call__(self) -> None:
        mlp.copy_rows(self._items.data_ptr(), self._items.shape[0], UNQUANTIZED)


def _is_bf16(tensor: Tensor) -> int:
    return int(tensor.dtype == torch.bfloat16)


def _pooled(features: Tensor) -> Pooled:
    return Pooled(features.data_ptr(), _is_bf16(features))


def _copy_items(copies: Sequence[RowCopy]) -> Iterator[tuple[int, ...]]:
    """Stretches of whole rows, of about the same size, as `mlp.copy_rows` takes them."""
    for source, target, bits in copies:
        columns = max(source.shape[1], 1)
        at_once = max(_FLOATS_PER_COPY // columns, 1)
        for row in range(0, source.shape[0], at_once):
            places = (source[row:].data_ptr(), target[row:].data_ptr())
            yield *places, min(at_once, source.shape[0] - row), columns, bits, _is_bf16(target)


def _rule(rule: UpdateRule) -> update.Rule:
    accumulator = 0 if rule.accumulator is None else rule.accumulator.data_ptr()
    chances = stored_rows.Chances(np.uint64(0), 0)
    if rule.chances is not None:
        first = rule.chances.first_row
        chances = stored_rows.Chances(np.uint64(rule.chances.key), 0 if first is None else first.data_ptr())
    decay, last, iteration = np.float32(0), 0, 0
    if rule.intervals is not None:
        decay, last = np.float32(rule.intervals.decay), rule.intervals.last.data_ptr()
        iteration = rule.intervals.iteration
    rates = np.float32(rule.lr), np.float32(rule.weight_decay), np.float32(rule.eps)
    return update.Rule(*rates, accumulator, chances, decay, last, iteration)


def _bounds_of(tracker: Tracker | None) -> Bounds:
    if tracker is None:
        return NO_BOUNDS
    if not isinstance(tracker, AbsmaxTracker):
        raise ForeignTrackerError(f"{type(tracker).__name__} is not a tracker of the numba kernels; use make_tracker")
    return tracker.bounds
