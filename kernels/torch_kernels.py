"""Every kernel in plain torch, for any device: the path on a GPU, and `--kernels torch` on a CPU.

Sums over equal rows go through the forward of an embedding bag over stably sorted positions: it adds in order, so that
the result is the same at every run on a CPU and on a GPU, where index_add_ uses atomics.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from .hashing import FACTOR_1, FACTOR_2, INCREMENT, weights_word
from .interface import Tracker
from .types import UNQUANTIZED, Bags, RowCopy, RowIntervals, SparseGrad, Tables, UpdateRule

_SMALLEST_SCALE = 1e-8
_INIT_CHUNK_ELEMENTS = 1 << 22
_LOW_HALF = (1 << 32) - 1
_CHANCE_BITS = 24
"""The bits of a random number that an f32 between 0 and 1 can hold exactly."""


class _Lookups(NamedTuple):
    """The ids of a batch, table by table and sample by sample."""

    rows: Tensor  # int64[N], rows of the arena
    table: Tensor  # int64[N]
    sample: Tensor  # int64[N]
    bag_length: Tensor | None  # int64[T * B], None if one-hot


def _lookups(tables: Tables, bags: Bags) -> _Lookups:
    device, num_tables = bags.ids.device, tables.num_tables
    first = tables.row_offset[:-1].to(device)
    if bags.offsets is None:
        batch = bags.ids.shape[1]
        rows = (bags.ids + first[:, None]).reshape(-1)
        table = torch.arange(num_tables, device=device).repeat_interleave(batch)
        return _Lookups(rows, table, torch.arange(batch, device=device).repeat(num_tables), None)
    length = bags.offsets.diff()
    batch = max(length.numel() // num_tables, 1)
    bag = torch.arange(length.numel(), device=device).repeat_interleave(length)
    table = bag // batch
    return _Lookups(bags.ids + first[table], table, bag % batch, length)


def _sum_segments(values: Tensor, positions: Tensor, starts: Tensor) -> Tensor:
    """Sums values[positions[starts[s] : starts[s + 1]]] to row s of the result, in that order."""
    if starts.numel() == 0 or values.numel() == 0:
        return values.new_zeros(starts.numel(), values.shape[1])
    # Not torch.embedding_bag: IPEX replaces it by one that returns the next bag's sum for an empty bag.
    summed: Tensor = torch.ops.aten._embedding_bag_forward_only(values, positions, starts, False, 0)[0]
    return summed


def _sum_equal(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the sorted unique keys, and for each the sum of its values in the order in which they come."""
    ordered, order = torch.sort(keys, stable=True)
    unique, count = torch.unique_consecutive(ordered, return_counts=True)
    return unique, _sum_segments(values, order, torch.cumsum(count, 0) - count)


def _fake_quantize(values: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Fake-quantizes values; the scale is broadcast to them."""
    codes = torch.round(values * torch.reciprocal(scale)).clamp_(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return codes.mul_(scale)


def _uniform_scale(absmax: Tensor, bits: int) -> Tensor:
    # By a tensor: divided by a number, a GPU would multiply by its reciprocal.
    return (absmax / torch.full_like(absmax, 2 ** (bits - 1) - 1)).clamp_(min=_SMALLEST_SCALE)


def gather_transform_pool(
    tables: Tables, bags: Bags, transform: Callable[[Tensor, Tensor], Tensor], out: Tensor
) -> None:
    """Looks up, applies transform(rows f32[N, D], table int64[N]), pools into out[:, 1:, :] of [B, F, D]."""
    lookups, num_tables, dim = _lookups(tables, bags), tables.num_tables, tables.dim
    values = transform(tables.weight.index_select(0, lookups.rows), lookups.table)
    if bags.offsets is not None and lookups.bag_length is not None:
        values = _sum_segments(values, torch.arange(values.shape[0], device=values.device), bags.offsets[:-1])
        if bags.mean:
            values /= lookups.bag_length.clamp(min=1)[:, None]
    out[:, 1:, :] = values.view(num_tables, out.shape[0], dim).transpose(0, 1)


class TorchTracker:
    """A tracker that scans when asked: on a GPU a scan costs little."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def absmax(self) -> Tensor:
        return _scan_absmax(self._tables)

    def rebuild(self, tables: Tables) -> None:
        self._tables = tables


def _scan_absmax(tables: Tables) -> Tensor:
    maxima = torch.zeros(tables.num_tables, device=tables.weight.device)
    for t, (first, end) in enumerate(pairwise(tables.row_offset.tolist())):
        if first < end:
            low, high = torch.aminmax(tables.weight[first:end])
            torch.maximum(-low, high, out=maxima[t])
    return maxima


class TorchKernels:
    """Implements `interface.Kernels` on the device where the tensors are."""

    name = "torch"

    def __init__(self) -> None:
        self._pairs: dict[tuple[int, torch.device], Tensor] = {}

    def _pair_positions(self, num_features: int, device: torch.device) -> Tensor:
        """Positions of the pairs i > j in a flattened F x F matrix, row by row."""
        key = (num_features, device)
        if key not in self._pairs:
            i, j = torch.tril_indices(num_features, num_features, -1, device=device)
            self._pairs[key] = i * num_features + j
        return self._pairs[key]

    def init_uniform_(self, tables: Tables, seed: int) -> None:
        for first, end in pairwise(tables.row_offset.tolist()):
            self.initial_rows(seed, first, end - first, tables.weight[first:end])

    def initial_rows(self, seed: int, first: int, num_rows: int, out: Tensor) -> None:
        count, dim = out.shape
        rows_per_chunk = max(_INIT_CHUNK_ELEMENTS // dim, 1)
        scale = torch.tensor((1 / max(num_rows, 1)) ** 0.5 / 2**23, dtype=torch.float32, device=out.device)
        for start in range(0, count, rows_per_chunk):
            end = min(start + rows_per_chunk, count)
            rows = torch.arange(first + start, first + end, device=out.device)
            torch.mul(_uniform_odd(seed, rows, dim), scale, out=out[start:end])

    def gather_quantize_pool(self, tables: Tables, bags: Bags, scale: Tensor, bits: int, out: Tensor) -> None:
        def transform(rows: Tensor, table: Tensor) -> Tensor:
            return rows if bits == UNQUANTIZED else _fake_quantize(rows, scale[table][:, None], bits)

        gather_transform_pool(tables, bags, transform, out)

    def interaction_forward(self, features: Tensor, out: Tensor) -> None:
        batch, num_features, dim = features.shape
        gram = torch.bmm(features, features.transpose(1, 2)).view(batch, num_features * num_features)
        out[:, :dim] = features[:, 0]
        out[:, dim:] = gram.index_select(1, self._pair_positions(num_features, features.device))

    def interaction_backward(self, features: Tensor, grad_out: Tensor, grad_features: Tensor) -> None:
        batch, num_features, dim = features.shape
        gram = torch.zeros(batch, num_features * num_features, dtype=features.dtype, device=features.device)
        gram[:, self._pair_positions(num_features, features.device)] = grad_out[:, dim:]
        square = gram.view(batch, num_features, num_features)
        torch.bmm(square + square.transpose(1, 2), features, out=grad_features)
        grad_features[:, 0] += grad_out[:, :dim]

    def coalesce(self, tables: Tables, bags: Bags, grad_features: Tensor) -> SparseGrad:
        rows, values = _row_gradients(tables, bags, grad_features)
        offset = tables.row_offset.to(rows.device)
        pointer = torch.searchsorted(rows, offset)
        table = torch.arange(tables.num_tables, device=rows.device).repeat_interleave(pointer.diff())
        return SparseGrad(pointer, (rows - offset[table]).int(), values)

    def merge_sparse(self, grads: Sequence[SparseGrad]) -> SparseGrad:
        num_tables, device = grads[0].table_ptr.numel() - 1, grads[0].rows.device
        of_table = torch.arange(num_tables, device=device) << 32
        keys = torch.cat([grad.rows + of_table.repeat_interleave(grad.table_ptr.diff()) for grad in grads])
        unique, values = _sum_equal(keys, torch.cat([grad.values for grad in grads]))
        pointer = torch.searchsorted(unique, torch.arange(num_tables + 1, device=device) << 32)
        return SparseGrad(pointer, (unique & _LOW_HALF).int(), values)

    def update_(
        self, tables: Tables, bags: Bags, grad_features: Tensor, rule: UpdateRule, tracker: Tracker | None
    ) -> None:
        _update_(tables, *_row_gradients(tables, bags, grad_features), rule)

    def update_sparse_(self, tables: Tables, grad: SparseGrad, rule: UpdateRule, tracker: Tracker | None) -> None:
        first = tables.row_offset[:-1].to(grad.rows.device)
        _update_(tables, grad.rows + first.repeat_interleave(grad.table_ptr.diff()), grad.values, rule)

    def scan_absmax(self, tables: Tables) -> Tensor:
        return _scan_absmax(tables)

    def make_tracker(self, tables: Tables) -> Tracker:
        return TorchTracker(tables)

    def uniform_scales(self, absmax: Tensor, bits: int, scale: Tensor) -> bool:
        scale.copy_(_uniform_scale(absmax, bits))
        return bool(torch.isfinite(absmax).all())

    def click_loss(
        self,
        logits: Tensor,
        labels: Tensor,
        share: float,
        loss: Tensor,
        grad: Tensor,
        weights: Tensor | None = None,
    ) -> None:
        loss.copy_(binary_cross_entropy_with_logits(logits, labels, weights, reduction="sum") * share)
        torch.sub(torch.sigmoid(logits), labels, out=grad).mul_(share)
        if weights is not None:
            grad.mul_(weights)

    def row_copier(self, copies: Sequence[RowCopy]) -> Callable[[], None]:
        def copy() -> None:
            for source, target, bits in copies:
                if bits == UNQUANTIZED:
                    target.copy_(source)
                    continue
                scale = _uniform_scale(source.abs().amax(1, keepdim=True), bits)
                target.copy_(_fake_quantize(source, scale, bits))

        return copy

    def round_stochastic(self, values: Tensor, rows: Tensor, pointer: Tensor, scale: Tensor, key: int) -> Tensor:
        table = torch.arange(scale.numel(), device=rows.device).repeat_interleave(pointer.diff().to(rows.device))
        of_row = _splitmix64(_splitmix64(torch.full_like(table, _signed(key)), table), rows)
        words = _splitmix64(of_row[:, None], torch.arange(values.shape[1], device=rows.device))
        chance = _shift_right(words, 64 - _CHANCE_BITS).float() * 2.0**-_CHANCE_BITS
        of_table = scale[table][:, None]
        scaled = values / of_table
        below = torch.floor(scaled)
        return (below + (chance < scaled - below)) * of_table

    def rectify_backward_(
        self, grad: Tensor, activation: Tensor | None, bias: Tensor, transposed: Tensor | None
    ) -> None:
        if activation is not None:
            torch.ops.aten.threshold_backward.grad_input(grad, activation, 0, grad_input=grad)
        torch.sum(grad, 0, dtype=torch.float32, out=bias)
        if transposed is not None:
            transposed[: grad.shape[1], : grad.shape[0]] = grad.t()

    def quantize_rows(self, weight: Tensor, scale: float, bits: int) -> Tensor:
        codes = torch.round(weight * torch.reciprocal(torch.tensor(scale, dtype=torch.float32, device=weight.device)))
        return codes.clamp_(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1).to(torch.int8 if bits <= 8 else torch.int16)


def _row_gradients(tables: Tables, bags: Bags, grad_features: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the unique rows of the arena, sorted, and the sum of their gradients."""
    lookups, num_features = _lookups(tables, bags), grad_features.shape[1]
    values = grad_features.reshape(-1, tables.dim)[lookups.sample * num_features + 1 + lookups.table].float()
    if bags.mean and lookups.bag_length is not None:
        values = values / lookups.bag_length.repeat_interleave(lookups.bag_length)[:, None]
    return _sum_equal(lookups.rows, values)


def _update_(tables: Tables, rows: Tensor, values: Tensor, rule: UpdateRule) -> None:
    """Applies the rule to unique rows of the arena int64[N]."""
    weight = tables.weight.index_select(0, rows)
    grad = values + weight * rule.weight_decay
    if rule.intervals is not None:
        weight = _shrunk(weight, rows, rule.intervals)
    if rule.accumulator is None:
        # Product and difference are rounded apart, as elsewhere: add(alpha=) may fuse them.
        tables.weight.index_copy_(0, rows, weight - grad * rule.lr)
        return
    total = rule.accumulator.index_select(0, rows) + (grad * grad).mean(1)
    rule.accumulator.index_copy_(0, rows, total)
    tables.weight.index_copy_(0, rows, weight - grad * (rule.lr / (total.sqrt() + rule.eps))[:, None])


def _shrunk(weight: Tensor, rows: Tensor, intervals: RowIntervals) -> Tensor:
    """Returns the weights of rows int64[N] that are updated, smaller by the iterations since their last update."""
    lapsed = (intervals.iteration - intervals.last.index_select(0, rows)).float()
    intervals.last.index_fill_(0, rows, intervals.iteration)
    return weight * (1 - (lapsed * intervals.decay).clamp(max=1))[:, None]


# torch keeps 64-bit words in a signed type: products and sums wrap as they must, constants and shifts need care.


def _splitmix64(word: Tensor, counter: Tensor) -> Tensor:
    """Computes number `counter` of the sequence that starts at `word`; int64, broadcast against each other."""
    return _mix64(word + counter.long() * _signed(INCREMENT))


def _uniform_odd(seed: int, rows: Tensor, dim: int) -> Tensor:
    """Draws odd integers in (-2^23, 2^23) as f32[rows, dim], by the hash that `reference.uniform_value` spells out."""
    z = _mix64(rows * _signed(INCREMENT) + _signed(weights_word(seed)))[:, None]
    x = (z & _LOW_HALF) ^ (torch.arange(dim, device=rows.device) * 0x9E3779B9 & _LOW_HALF)
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & _LOW_HALF
    x = x ^ _shift_right(z, 32)
    x = ((x ^ (x >> 15)) * 0x735A2D97) & _LOW_HALF
    x = x ^ (x >> 15)
    return (2 * (x >> 9) + 1 - 2**23).float()


def _shift_right(x: Tensor, by: int) -> Tensor:
    """Shifts right logically."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def _signed(word: int) -> int:
    """Returns the int64 with the bits of a word of 64."""
    word &= (1 << 64) - 1
    return word - (1 << 64) if word >= 1 << 63 else word


def _mix64(z: Tensor) -> Tensor:
    z = (z ^ _shift_right(z, 30)) * _signed(FACTOR_1)
    z = (z ^ _shift_right(z, 27)) * _signed(FACTOR_2)
    return z ^ _shift_right(z, 31)
