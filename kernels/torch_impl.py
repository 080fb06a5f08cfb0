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

from .interface import Tracker
from .torch_hashing import mixed, shift_right, signed, uniform_odd
from .types import UNQUANTIZED, Bags, RowCopy, SparseGrad, Tables

_SMALLEST_STEP = 1e-8
_INIT_CHUNK_ELEMENTS = 1 << 22
_LOW_HALF = (1 << 32) - 1
_CHANCE_BITS = 24
"""What a float between 0 and 1 holds exactly."""


class _Lookups(NamedTuple):
    """Every id of a batch, table by table and sample by sample."""

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
    """Row s of the result: sum of values[positions[starts[s] : starts[s + 1]]], in that order."""
    if starts.numel() == 0 or values.numel() == 0:
        return values.new_zeros(starts.numel(), values.shape[1])
    # Not torch.embedding_bag: IPEX replaces it by one that returns the next bag's sum for an empty bag.
    summed: Tensor = torch.ops.aten._embedding_bag_forward_only(values, positions, starts, False, 0)[0]
    return summed


def _sum_equal(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The sorted unique keys, and for each the sum of its values in the order in which they come."""
    ordered, order = torch.sort(keys, stable=True)
    unique, count = torch.unique_consecutive(ordered, return_counts=True)
    return unique, _sum_segments(values, order, torch.cumsum(count, 0) - count)


def _fake_quantize(values: Tensor, step: Tensor, bits: int) -> Tensor:
    """step: broadcastable to values."""
    codes = torch.round(values * torch.reciprocal(step)).clamp_(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return codes.mul_(step)


def _uniform_step(absmax: Tensor, bits: int) -> Tensor:
    # By a tensor: divided by a number, a GPU would multiply by its reciprocal.
    return (absmax / torch.full_like(absmax, 2 ** (bits - 1) - 1)).clamp_(min=_SMALLEST_STEP)


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
    """Scans when asked: on a GPU a scan costs little."""

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
            torch.mul(uniform_odd(seed, rows, dim), scale, out=out[start:end])

    def gather_quantize_pool(self, tables: Tables, bags: Bags, step: Tensor, bits: int, out: Tensor) -> None:
        def transform(rows: Tensor, table: Tensor) -> Tensor:
            return rows if bits == UNQUANTIZED else _fake_quantize(rows, step[table][:, None], bits)

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

    def update_sgd_(
        self, tables: Tables, bags: Bags, grad_features: Tensor, lr: float, weight_decay: float, tracker: Tracker | None
    ) -> None:
        rows, values = _row_gradients(tables, bags, grad_features)
        _sgd_(tables, rows, values, lr, weight_decay)

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
        rows, values = _row_gradients(tables, bags, grad_features)
        _rowwise_adagrad_(tables, accumulator, rows, values, lr, eps, weight_decay)

    def apply_sgd_(
        self, tables: Tables, grad: SparseGrad, lr: float, weight_decay: float, tracker: Tracker | None
    ) -> None:
        _sgd_(tables, _arena_rows(tables, grad), grad.values, lr, weight_decay)

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
        _rowwise_adagrad_(tables, accumulator, _arena_rows(tables, grad), grad.values, lr, eps, weight_decay)

    def scan_absmax(self, tables: Tables) -> Tensor:
        return _scan_absmax(tables)

    def make_tracker(self, tables: Tables) -> Tracker:
        return TorchTracker(tables)

    def uniform_steps(self, absmax: Tensor, bits: int, step: Tensor) -> bool:
        step.copy_(_uniform_step(absmax, bits))
        return bool(torch.isfinite(absmax).all())

    def click_loss(self, logits: Tensor, labels: Tensor, share: float, loss: Tensor, grad: Tensor) -> None:
        loss.copy_(binary_cross_entropy_with_logits(logits, labels, reduction="sum") * share)
        torch.sub(torch.sigmoid(logits), labels, out=grad).mul_(share)

    def row_copier(self, copies: Sequence[RowCopy]) -> Callable[[], None]:
        def copy() -> None:
            for source, target, bits in copies:
                if bits == UNQUANTIZED:
                    target.copy_(source)
                    continue
                step = _uniform_step(source.abs().amax(1, keepdim=True), bits)
                target.copy_(_fake_quantize(source, step, bits))

        return copy

    def round_stochastic(self, values: Tensor, rows: Tensor, pointer: Tensor, step: Tensor, key: int) -> Tensor:
        table = torch.arange(step.numel(), device=rows.device).repeat_interleave(pointer.diff().to(rows.device))
        of_row = mixed(mixed(torch.full_like(table, signed(key)), table), rows)
        words = mixed(of_row[:, None], torch.arange(values.shape[1], device=rows.device))
        chance = shift_right(words, 64 - _CHANCE_BITS).float() * 2.0**-_CHANCE_BITS
        of_table = step[table][:, None]
        steps_in = values / of_table
        below = torch.floor(steps_in)
        return (below + (chance < steps_in - below)) * of_table

    def rectify_backward_(
        self, grad: Tensor, activation: Tensor | None, bias: Tensor, transposed: Tensor | None
    ) -> None:
        if activation is not None:
            torch.ops.aten.threshold_backward.grad_input(grad, activation, 0, grad_input=grad)
        torch.sum(grad, 0, dtype=torch.float32, out=bias)
        if transposed is not None:
            transposed[: grad.shape[1], : grad.shape[0]] = grad.t()

    def quantize_rows(self, weight: Tensor, step: float, bits: int) -> Tensor:
        codes = torch.round(weight * torch.reciprocal(torch.tensor(step, dtype=torch.float32, device=weight.device)))
        return codes.clamp_(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1).to(torch.int8 if bits <= 8 else torch.int16)

    def pack_int4(self, codes: Tensor) -> Tensor:
        nibbles = torch.nn.functional.pad(codes.to(torch.uint8) & 15, (0, codes.shape[1] % 2))
        return nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)

    def unpack_int4(self, packed: Tensor, dim: int) -> Tensor:
        nibbles = torch.stack((packed & 15, packed >> 4), 2).flatten(1)[:, :dim].to(torch.int8)
        return torch.where(nibbles >= 8, nibbles - 16, nibbles)


def _row_gradients(tables: Tables, bags: Bags, grad_features: Tensor) -> tuple[Tensor, Tensor]:
    """Unique rows of the arena, sorted, and the sum of their gradients."""
    lookups, num_features = _lookups(tables, bags), grad_features.shape[1]
    values = grad_features.reshape(-1, tables.dim)[lookups.sample * num_features + 1 + lookups.table].float()
    if bags.mean and lookups.bag_length is not None:
        values = values / lookups.bag_length.repeat_interleave(lookups.bag_length)[:, None]
    return _sum_equal(lookups.rows, values)


def _arena_rows(tables: Tables, grad: SparseGrad) -> Tensor:
    """int64[N]: rows of the arena."""
    first = tables.row_offset[:-1].to(grad.rows.device)
    return grad.rows + first.repeat_interleave(grad.table_ptr.diff())


def _sgd_(tables: Tables, rows: Tensor, values: Tensor, lr: float, weight_decay: float) -> None:
    weight = tables.weight.index_select(0, rows)
    # Product and difference are rounded apart, as elsewhere: add(alpha=) may fuse them.
    tables.weight.index_copy_(0, rows, weight - (values + weight * weight_decay) * lr)


def _rowwise_adagrad_(
    tables: Tables, accumulator: Tensor, rows: Tensor, values: Tensor, lr: float, eps: float, weight_decay: float
) -> None:
    weight = tables.weight.index_select(0, rows)
    grad = values + weight * weight_decay
    total = accumulator.index_select(0, rows) + (grad * grad).mean(1)
    accumulator.index_copy_(0, rows, total)
    tables.weight.index_copy_(0, rows, weight - grad * (lr / (total.sqrt() + eps))[:, None])
