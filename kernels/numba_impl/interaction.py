"""Pairwise dot products of a sample's feature vectors, and their gradient; a sample stays in the L1 cache.

Both are small matrix products. Eight sums in registers at a time, in two `Four`s, hide the latency of a multiply-add.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import prange

from .bfloat import load_number, store_number
from .compiled import inlined, parallel, serial
from .memory import float_at
from .vector import LANES, add, load, load_part, multiply_add, splat, store, store_part, transpose

_FOUR = 4


class Shape(NamedTuple):
    """B samples of F vectors of D numbers; `is_bf16`: all of them, and the dots, are BF16."""

    batch: int
    num_features: int
    dim: int
    is_bf16: int


class Scratch(NamedTuple):
    """Memory of each thread: a sample widened, the same transposed or its gradient, and what goes with its dots."""

    place: int  # f32[threads, 2 sample + width]
    sample: int
    width: int
    threads: int


def scratch_sizes(num_features: int, dim: int) -> tuple[int, int]:
    """`sample` and `width`, with room for what whole registers write beyond."""
    sample = -(-num_features // LANES) * LANES * -(-dim // LANES) * LANES
    return sample + LANES, dim + num_features * (num_features - 1) // 2 + LANES


@inlined
def _widen(source: int, first: int, count: int, target: int) -> None:
    """FP32 copies of BF16 numbers; may write up to LANES - 1 more."""
    for k in range(0, count, LANES):
        store(target, k, load_number(source, first + k, count - k, 1))


@inlined
def _narrow(source: int, target: int, first: int, count: int) -> None:
    """BF16 copies of FP32 numbers."""
    for k in range(0, count, LANES):
        store_number(target, first + k, load_part(source, k, count - k), count - k, 1)


@inlined
def _add_four(sums: Any, row: Any, g0: np.float32, g1: np.float32, g2: np.float32, g3: np.float32) -> Any:
    """Four registers of sums, each with a multiple of `row` added."""
    s0, s1 = multiply_add(splat(g0), row, sums[0]), multiply_add(splat(g1), row, sums[1])
    return s0, s1, multiply_add(splat(g2), row, sums[2]), multiply_add(splat(g3), row, sums[3])


@inlined
def _no_sums() -> Any:
    zeros = splat(np.float32(0))
    return zeros, zeros, zeros, zeros


@parallel
def interaction_forward(features: int, shape: Shape, out: int, scratch: Scratch) -> None:
    """features [B, F, D] to out [B, D + F (F - 1) / 2]."""
    batch, num_features, dim, is_bf16 = shape
    size, width = num_features * dim, dim + num_features * (num_features - 1) // 2
    padded = (num_features + LANES - 1) // LANES * LANES
    for worker in prange(scratch.threads):
        wide = scratch.place + 4 * worker * (2 * scratch.sample + scratch.width)
        columns = wide + 4 * scratch.sample
        dots = columns + 4 * scratch.sample
        for b in range(batch * worker // scratch.threads, batch * (worker + 1) // scratch.threads):
            if is_bf16:
                _widen(features, b * size, size, wide)
                _dots(wide, num_features, dim, columns, padded, dots)
                _narrow(dots, out, b * width, width)
            else:
                _dots(features + 4 * b * size, num_features, dim, columns, padded, out + 4 * b * width)


@serial
def _dots(sample: int, num_features: int, dim: int, columns: int, padded: int, result: int) -> None:
    """result[D + i (i - 1) / 2 + j] = sample[i] . sample[j] for j < i; `columns`: scratch for sample transposed."""
    for k in range(0, dim, LANES):
        store_part(result, k, load_part(sample, k, dim - k), dim - k)
        for i in range(0, num_features, LANES):
            tile, target = sample + 4 * (i * dim + k), columns + 4 * (k * padded + i)
            transpose(tile, dim, num_features - i, dim - k, target, padded)
    for start in range(0, num_features - 1, LANES):
        for i in range(start + 1, num_features, _FOUR):
            _dots_of_four(sample, num_features, dim, columns + 4 * start, padded, start, i, result + 4 * dim)


@inlined
def _dots_of_four(
    sample: int, num_features: int, dim: int, column: int, padded: int, start: int, i: int, pairs: int
) -> None:
    """Vectors i to i + 3 with LANES vectors from `start` on; even and odd elements are summed apart."""
    last = num_features - 1  # stands in for vectors beyond it
    r0, r1, r2, r3 = i * dim, min(i + 1, last) * dim, min(i + 2, last) * dim, min(i + 3, last) * dim
    even, odd = _no_sums(), _no_sums()
    for k in range(0, dim - 1, 2):
        even = _add_element(even, sample + 4 * k, r0, r1, r2, r3, load(column, k * padded))
        odd = _add_element(odd, sample + 4 * (k + 1), r0, r1, r2, r3, load(column, (k + 1) * padded))
    if dim & 1:
        even = _add_element(even, sample + 4 * (dim - 1), r0, r1, r2, r3, load(column, (dim - 1) * padded))
    at = pairs + 4 * (i * (i - 1) // 2 + start)
    store_part(at, 0, add(even[0], odd[0]), i - start)
    if i + 1 <= last:
        store_part(at, i, add(even[1], odd[1]), i + 1 - start)
    if i + 2 <= last:
        store_part(at, 2 * i + 1, add(even[2], odd[2]), i + 2 - start)
    if i + 3 <= last:
        store_part(at, 3 * i + 3, add(even[3], odd[3]), i + 3 - start)


@inlined
def _add_element(sums: Any, place: int, r0: int, r1: int, r2: int, r3: int, column: Any) -> Any:
    return _add_four(sums, column, float_at(place, r0), float_at(place, r1), float_at(place, r2), float_at(place, r3))


@parallel
def interaction_backward(features: int, shape: Shape, grad_out: int, grad_features: int, scratch: Scratch) -> None:
    """grad_out [B, D + F (F - 1) / 2] to grad_features [B, F, D]."""
    batch, num_features, dim, is_bf16 = shape
    size, width = num_features * dim, dim + num_features * (num_features - 1) // 2
    for worker in prange(scratch.threads):
        wide = scratch.place + 4 * worker * (2 * scratch.sample + scratch.width)
        result = wide + 4 * scratch.sample
        grad = result + 4 * scratch.sample
        for b in range(batch * worker // scratch.threads, batch * (worker + 1) // scratch.threads):
            if is_bf16:
                _widen(features, b * size, size, wide)
                _widen(grad_out, b * width, width, grad)
                _spread(wide, num_features, dim, grad, result)
                _narrow(result, grad_features, b * size, size)
            else:
                sample = features + 4 * b * size
                _spread(sample, num_features, dim, grad_out + 4 * b * width, grad_features + 4 * b * size)


@serial
def _spread(sample: int, num_features: int, dim: int, grad: int, result: int) -> None:
    """result[i] = sum over j of the gradient of (i, j) times sample[j]; the first vector also has its own."""
    pairs = grad + 4 * dim
    for k in range(0, dim, LANES):
        count = dim - k
        for block in range(0, num_features, _FOUR):
            if num_features < _FOUR:
                _spread_few(sample + 4 * k, num_features, dim, count, pairs, result + 4 * k)
            else:
                # The last block goes back to be whole; what it computes again comes out the same.
                i = min(block, num_features - _FOUR)
                _spread_four(sample + 4 * k, num_features, dim, count, pairs, i, result + 4 * k)
        store_part(result, k, add(load_part(grad, k, count), load_part(result, k, count)), count)


@inlined
def _spread_few(sample: int, num_features: int, dim: int, count: int, pairs: int, result: int) -> None:
    """All rows, where there are no four."""
    for i in range(num_features):
        summed = splat(np.float32(0))
        for j in range(num_features):
            if i != j:
                low, high = min(i, j), max(i, j)
                of_pair = splat(float_at(pairs, high * (high - 1) // 2 + low))
                summed = multiply_add(of_pair, load_part(sample, j * dim, count), summed)
        store_part(result, i * dim, summed, count)


@inlined
def _below(sums: Any, sample: int, j: int, dim: int, count: int, pairs: int, i: int) -> Any:
    """Adds vector j < i to the sums of vectors i to i + 3."""
    at = pairs + 4 * (i * (i - 1) // 2 + j)
    g0, g1, g2, g3 = float_at(at, 0), float_at(at, i), float_at(at, 2 * i + 1), float_at(at, 3 * i + 3)
    return _add_four(sums, load_part(sample, j * dim, count), g0, g1, g2, g3)


@inlined
def _above(sums: Any, sample: int, j: int, dim: int, count: int, pairs: int, i: int) -> Any:
    """Adds vector j > i + 3 to the sums of vectors i to i + 3."""
    at = pairs + 4 * (j * (j - 1) // 2 + i)
    g0, g1, g2, g3 = float_at(at, 0), float_at(at, 1), float_at(at, 2), float_at(at, 3)
    return _add_four(sums, load_part(sample, j * dim, count), g0, g1, g2, g3)


@inlined
def _spread_four(sample: int, num_features: int, dim: int, count: int, pairs: int, i: int, result: int) -> None:
    """Rows i to i + 3 of one register's width; even and odd vectors are summed apart."""
    even, odd = _no_sums(), _no_sums()
    for j in range(0, i - 1, 2):
        even = _below(even, sample, j, dim, count, pairs, i)
        odd = _below(odd, sample, j + 1, dim, count, pairs, i)
    if i & 1:
        even = _below(even, sample, i - 1, dim, count, pairs, i)
    at, none = pairs + 4 * (i * (i - 1) // 2 + i), np.float32(0)
    p10, p20, p21 = float_at(at, i), float_at(at, 2 * i + 1), float_at(at, 2 * i + 2)
    p30, p31, p32 = float_at(at, 3 * i + 3), float_at(at, 3 * i + 4), float_at(at, 3 * i + 5)
    own = sample + 4 * i * dim
    even = _add_four(even, load_part(own, 0, count), none, p10, p20, p30)
    odd = _add_four(odd, load_part(own, dim, count), p10, none, p21, p31)
    even = _add_four(even, load_part(own, 2 * dim, count), p20, p21, none, p32)
    odd = _add_four(odd, load_part(own, 3 * dim, count), p30, p31, p32, none)
    for j in range(i + _FOUR, num_features - 1, 2):
        even = _above(even, sample, j, dim, count, pairs, i)
        odd = _above(odd, sample, j + 1, dim, count, pairs, i)
    if (num_features - i) & 1:
        even = _above(even, sample, num_features - 1, dim, count, pairs, i)
    store_part(result, i * dim, add(even[0], odd[0]), count)
    store_part(result, (i + 1) * dim, add(even[1], odd[1]), count)
    store_part(result, (i + 2) * dim, add(even[2], odd[2]), count)
    store_part(result, (i + 3) * dim, add(even[3], odd[3]), count)
