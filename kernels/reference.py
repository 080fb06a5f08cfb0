"""NumPy oracle of every kernel: slow, short, obviously right; tests compare the other implementations with it."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .interface import Tracker
from .master_rows import BF16, FP32, INT8
from .types import UNQUANTIZED, Bags, RowChances, RowCopy, SparseGrad, Tables, UpdateRule

Floats = NDArray[np.float32]

_SMALLEST_SCALE = np.float32(1e-8)
_HASH_INCREMENT = 0x9E3779B97F4A7C15


def fake_quantize(values: Floats, scale: np.float32, bits: int) -> Floats:
    """Quantizes values of any shape to `bits` bits with one scale and back (paper 3.1)."""
    if bits == UNQUANTIZED:
        return values
    inverse = np.float32(1) / scale
    codes = np.clip(np.rint(values * inverse), np.float32(-(2 ** (bits - 1))), np.float32(2 ** (bits - 1) - 1))
    return np.asarray(codes * scale, dtype=np.float32)


def uniform_scale(absmax: Floats, bits: int) -> Floats:
    """Returns the scale under which max|W| is the largest code; never 0."""
    scale: Floats = np.maximum(absmax / np.float32(2 ** (bits - 1) - 1), _SMALLEST_SCALE)
    return scale


def bags_of(bags: Bags, num_tables: int) -> Iterator[tuple[int, int, NDArray[np.int32]]]:
    """Yields (table, sample, ids) of every bag."""
    ids = bags.ids.numpy()
    if bags.offsets is None:
        for t, b in np.ndindex(*ids.shape):
            yield t, b, ids[t, b : b + 1]
        return
    offsets = bags.offsets.numpy()
    batch = (len(offsets) - 1) // num_tables
    for t, b in np.ndindex(num_tables, batch):
        yield t, b, ids[offsets[t * batch + b] : offsets[t * batch + b + 1]]


def table_rows(tables: Tables, t: int) -> Floats:
    """Returns table t of the arena, f32[rows, D]: a view where rows are FP32."""
    weight = tables.weight[int(tables.row_offset[t]) : int(tables.row_offset[t + 1])]
    if weight.dtype == FP32:
        values: Floats = weight.numpy()
        return values
    if weight.dtype == BF16:
        return (weight.view(torch.int16).numpy().astype(np.uint32) << 16).view(np.float32)
    rows = weight.numpy()
    exponent = rows[:, -1:].astype(np.int32)
    with np.errstate(invalid="ignore"):
        scale = np.where(exponent == 255, np.inf, np.where(exponent == 0, 0, 2.0 ** (exponent - 127.0)))
        return (rows[:, :-1].view(np.int8) * scale).astype(np.float32)


def rounded_row(values: Floats, before: Tensor, chances: Floats) -> Tensor:
    """Returns values f32[D] as a row of the type of that `before`; chances f32[D], from 0 to below 1."""
    if before.dtype == BF16:
        low = values.view(np.uint32) & 0xFFFF0000
        share = (values.view(np.uint32) & 0xFFFF) / 65536
        up = np.where(np.floor(chances * 65536) / 65536 + share >= 1, 0x10000, 0)
        bits = np.where(np.isfinite(values), low + up, values.view(np.uint32))
        return torch.from_numpy((bits >> 16).astype(np.uint16).view(np.int16)).view(BF16)
    largest, exponent = float(np.abs(values).max()), int(before[-1])
    if not np.isfinite(largest):
        return torch.tensor([0] * len(values) + [255], dtype=INT8)
    scale = 2.0 ** (exponent - 127.0)
    if largest == 0:
        exponent = exponent if exponent < 255 else 0
    elif exponent in (0, 255) or not 48 * scale <= largest <= 127 * scale:
        exponent = max(int(np.ceil(np.log2(largest / 127))) + 127, 1)
        while largest > 127 * 2.0 ** (exponent - 127.0):
            exponent += 1
        while exponent > 1 and largest <= 127 * 2.0 ** (exponent - 128.0):
            exponent -= 1
    scaled = values.astype(np.float64) / 2.0 ** (exponent - 127.0) if exponent else np.zeros(len(values))
    below = np.floor(scaled)
    # As in FP32, which the difference is exact in but for the least of numbers below 0.
    codes = below + (chances < (scaled - below).astype(np.float32))
    return torch.cat((torch.from_numpy(codes.astype(np.int8)).view(INT8), torch.tensor([exponent], dtype=INT8)))


def row_chances(chances: RowChances, table: int, row: int, dim: int) -> Floats:
    """Returns the chances of a row's numbers, f32[D]: 24 bits of the hash that initial weights are drawn by."""
    first = 0 if chances.first_row is None else int(chances.first_row[table])
    key = splitmix(splitmix(chances.key, table), first + row)
    return np.array([hash_of(key, column) >> 8 for column in range(dim)], np.float32) / np.float32(2**24)


def splitmix(word: int, counter: int) -> int:
    """Returns number `counter` of the splitmix64 sequence that starts at `word`."""
    z = (word + counter * _HASH_INCREMENT) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def hash_of(key: int, column: int) -> int:
    """Returns 32 bits of a column of the row with this key of 64 bits."""
    half = 2**32 - 1
    x = (key & half) ^ (column * 0x9E3779B9 & half)
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & half
    x ^= key >> 32
    x = ((x ^ (x >> 15)) * 0x735A2D97) & half
    return x ^ (x >> 15)


def uniform_value(seed: int, row: int, column: int, num_rows: int) -> np.float32:
    """Returns the initial weight at a row of the arena and a column, in a table of num_rows rows.

    splitmix64 of seed and row gives the row two 32-bit keys, a 32-bit mixer of keys and column gives 23 bits.
    """
    odd = 2 * (hash_of(splitmix(seed * 0xD1342543DE82EF95 + 1, row), column) >> 9) + 1 - 2**23
    return np.float32(odd) * np.float32((1 / num_rows) ** 0.5 / 2**23)


def _sparse_grad(sums: Sequence[dict[int, Floats]], dim: int) -> SparseGrad:
    """Makes a SparseGrad from one mapping of row to gradient per table."""
    rows = [row for table in sums for row in sorted(table)]
    values = [table[row] for table in sums for row in sorted(table)]
    pointer = np.cumsum([0, *(len(table) for table in sums)], dtype=np.int64)
    return SparseGrad(
        torch.from_numpy(pointer),
        torch.tensor(rows, dtype=torch.int32),
        torch.from_numpy(np.array(values, dtype=np.float32).reshape(len(rows), dim)),
    )


class ScanTracker:
    """A tracker that looks at all rows whenever it is asked."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def absmax(self) -> Tensor:
        maxima = [np.abs(table_rows(self._tables, t)).max(initial=0) for t in range(self._tables.num_tables)]
        return torch.tensor(maxima, dtype=torch.float32)

    def rebuild(self, tables: Tables) -> None:
        self._tables = tables


class ReferenceKernels:
    """Implements `interface.Kernels`; CPU tensors only."""

    name = "reference"

    def init_uniform_(self, tables: Tables, seed: int) -> None:
        for t in range(tables.num_tables):
            rows, first = table_rows(tables, t), int(tables.row_offset[t])
            for r, c in np.ndindex(*rows.shape):
                rows[r, c] = uniform_value(seed, first + r, c, len(rows))

    def initial_rows(self, seed: int, first: int, num_rows: int, out: Tensor) -> None:
        values = out.numpy()
        for r, c in np.ndindex(*values.shape):
            values[r, c] = uniform_value(seed, first + r, c, num_rows)

    def gather_quantize_pool(self, tables: Tables, bags: Bags, scale: Tensor, bits: int, out: Tensor) -> None:
        for t, b, ids in bags_of(bags, tables.num_tables):
            pooled = np.zeros(tables.dim, dtype=np.float32)
            for row in fake_quantize(table_rows(tables, t)[ids], scale.numpy()[t], bits):
                pooled += row
            if bags.mean and len(ids):
                pooled /= np.float32(len(ids))
            out[b, 1 + t] = torch.from_numpy(pooled)

    def interaction_forward(self, features: Tensor, out: Tensor) -> None:
        x, dim = features.double().numpy(), features.shape[2]
        out[:, :dim] = features[:, 0]
        pairs = [(i, j) for i in range(x.shape[1]) for j in range(i)]
        for p, (i, j) in enumerate(pairs):
            out[:, dim + p] = torch.from_numpy((x[:, i] * x[:, j]).sum(1))

    def interaction_backward(self, features: Tensor, grad_out: Tensor, grad_features: Tensor) -> None:
        x, g, dim = features.double().numpy(), grad_out.float().numpy(), features.shape[2]
        total = np.zeros_like(x)
        total[:, 0] = g[:, :dim]
        pairs = [(i, j) for i in range(x.shape[1]) for j in range(i)]
        for p, (i, j) in enumerate(pairs):
            total[:, i] += g[:, dim + p, None] * x[:, j]
            total[:, j] += g[:, dim + p, None] * x[:, i]
        grad_features.copy_(torch.from_numpy(total))

    def coalesce(self, tables: Tables, bags: Bags, grad_features: Tensor) -> SparseGrad:
        sums: list[dict[int, Floats]] = [{} for _ in range(tables.num_tables)]
        for t, b, ids in bags_of(bags, tables.num_tables):
            grad = grad_features.float().numpy()[b, 1 + t]
            if bags.mean and len(ids):
                grad = grad / np.float32(len(ids))
            for row in ids.tolist():
                sums[t][row] = sums[t][row] + grad if row in sums[t] else grad
        return _sparse_grad(sums, tables.dim)

    def merge_sparse(self, grads: Sequence[SparseGrad]) -> SparseGrad:
        num_tables, dim = grads[0].table_ptr.numel() - 1, grads[0].values.shape[1]
        sums: list[dict[int, Floats]] = [defaultdict(lambda: np.zeros(dim, np.float32)) for _ in range(num_tables)]
        for grad in grads:
            for t in range(num_tables):
                for i in range(int(grad.table_ptr[t]), int(grad.table_ptr[t + 1])):
                    row = int(grad.rows[i])
                    sums[t][row] = sums[t][row] + grad.values.numpy()[i]
        return _sparse_grad(sums, dim)

    def update_(
        self, tables: Tables, bags: Bags, grad_features: Tensor, rule: UpdateRule, tracker: Tracker | None
    ) -> None:
        self.update_sparse_(tables, self.coalesce(tables, bags, grad_features), rule, tracker)

    def update_sparse_(self, tables: Tables, grad: SparseGrad, rule: UpdateRule, tracker: Tracker | None) -> None:
        decay = np.float32(rule.weight_decay)
        for t in range(tables.num_tables):
            weight, first = table_rows(tables, t), int(tables.row_offset[t])
            for i in range(int(grad.table_ptr[t]), int(grad.table_ptr[t + 1])):
                row, rate = int(grad.rows[i]), np.float32(rule.lr)
                g = grad.values.numpy()[i] + decay * weight[row]
                if rule.accumulator is not None:
                    rule.accumulator[first + row] += float(np.mean(g * g))
                    rate = rate / (np.sqrt(rule.accumulator.numpy()[first + row]) + np.float32(rule.eps))
                if rule.intervals is not None:
                    last = rule.intervals.last.numpy()
                    lapsed = np.float32(rule.intervals.iteration - last[first + row])
                    weight[row] *= np.float32(1) - min(np.float32(rule.intervals.decay) * lapsed, np.float32(1))
                    last[first + row] = rule.intervals.iteration
                weight[row] -= rate * g
                if tables.weight.dtype != FP32:
                    assert rule.chances is not None, "rows of few bits are rounded by chance"
                    chances = row_chances(rule.chances, t, row, tables.dim)
                    before = tables.weight[first + row]
                    tables.weight[first + row] = rounded_row(weight[row], before, chances)

    def scan_absmax(self, tables: Tables) -> Tensor:
        return ScanTracker(tables).absmax()

    def make_tracker(self, tables: Tables) -> Tracker:
        return ScanTracker(tables)

    def uniform_scales(self, absmax: Tensor, bits: int, scale: Tensor) -> bool:
        scale.copy_(torch.from_numpy(uniform_scale(absmax.numpy(), bits)))
        return all(np.isfinite(value) for value in absmax.numpy())

    def click_loss(
        self,
        logits: Tensor,
        labels: Tensor,
        share: float,
        loss: Tensor,
        grad: Tensor,
        weights: Tensor | None = None,
    ) -> None:
        total = 0.0
        each = [1.0] * logits.numel() if weights is None else weights.tolist()
        for i, (x, y, weight) in enumerate(zip(logits.tolist(), labels.tolist(), each, strict=True)):
            # -log of the sigmoid of x, and of -x.
            clicked, passed = np.logaddexp(0, -x), np.logaddexp(0, x)
            total += weight * (y * clicked + (1 - y) * passed)
            grad[i] = weight * (np.exp(-clicked) - y) * share
        loss.fill_(total * share)

    def row_copier(self, copies: Sequence[RowCopy]) -> Callable[[], None]:
        def copy() -> None:
            for source, target, bits in copies:
                for o, row in enumerate(source.numpy()):
                    scale = uniform_scale(np.abs(row).max(initial=0, keepdims=True), bits)
                    target[o] = torch.from_numpy(fake_quantize(row, scale[0], bits))

        return copy

    def round_stochastic(self, values: Tensor, rows: Tensor, pointer: Tensor, scale: Tensor, key: int) -> Tensor:
        out = values.clone()
        tables = np.repeat(np.arange(scale.numel()), pointer.diff().numpy())
        for entry, (table, row) in enumerate(zip(tables.tolist(), rows.tolist(), strict=True)):
            of_row = splitmix(splitmix(key, table), row)
            for column in range(values.shape[1]):
                scaled = values[entry, column].numpy() / scale[table].numpy()
                chance = np.float32(splitmix(of_row, column) >> 40) * np.float32(2.0**-24)
                rounded = np.floor(scaled) + np.float32(chance < scaled - np.floor(scaled))
                out[entry, column] = float(rounded * scale[table].numpy())
        return out

    def rectify_backward_(
        self, grad: Tensor, activation: Tensor | None, bias: Tensor, transposed: Tensor | None
    ) -> None:
        if activation is not None:
            grad[activation <= 0] = 0
        bias.copy_(grad.double().sum(0))
        if transposed is not None:
            transposed[: grad.shape[1], : grad.shape[0]] = grad.t()

    def quantize_rows(self, weight: Tensor, scale: float, bits: int) -> Tensor:
        inverse = np.float32(1) / np.float32(scale)
        codes = np.clip(np.rint(weight.numpy() * inverse), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        return torch.from_numpy(codes.astype(np.int8 if bits <= 8 else np.int16))
