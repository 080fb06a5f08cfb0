"""Pairwise dot products of a sample's feature vectors, and their gradient; a sample stays in the L1 cache."""

from typing import Any

import numpy as np
from numba import prange

from .compiled import inlined, parallel, serial
from .memory import float_at
from .vector import LANES, add, load, load_part, multiply_add, splat, store_part, transpose

_ROWS = 4
"""Feature vectors worked on at once: as many sums in registers hide the latency of a multiply-add."""


def columns_floats(num_features: int, dim: int) -> int:
    """Scratch memory of one thread."""
    return -(-num_features // LANES) * LANES * -(-dim // LANES) * LANES


@parallel
def interaction_forward(
    features: int, batch: int, num_features: int, dim: int, out: int, scratch: int, threads: int
) -> None:
    """features f32[B, F, D] to out f32[B, D + F (F - 1) / 2]; scratch: f32[threads, columns_floats]."""
    width, padded = dim + num_features * (num_features - 1) // 2, (num_features + LANES - 1) // LANES * LANES
    size = padded * ((dim + LANES - 1) // LANES * LANES)
    for worker in prange(threads):
        columns = scratch + 4 * worker * size
        for b in range(batch * worker // threads, batch * (worker + 1) // threads):
            _dots(features + 4 * b * num_features * dim, num_features, dim, columns, padded, out + 4 * b * width)


@serial
def _dots(sample: int, num_features: int, dim: int, columns: int, padded: int, result: int) -> None:
    """result[D + i (i - 1) / 2 + j] = sample[i] . sample[j] for j < i; `columns`: scratch for sample transposed."""
    for k in range(0, dim, LANES):
        store_part(result, k, load_part(sample, k, dim - k), dim - k)
        for i in range(0, num_features, LANES):
            tile, target = sample + 4 * (i * dim + k), columns + 4 * (k * padded + i)
            transpose(tile, dim, num_features - i, dim - k, target, padded)
    for start in range(0, num_features - 1, LANES):
        i = start + 1
        while i + _ROWS <= num_features:
            s0 = s1 = s2 = s3 = splat(np.float32(0))
            for k in range(dim):
                column = load(columns, k * padded + start)
                s0 = multiply_add(splat(float_at(sample, i * dim + k)), column, s0)
                s1 = multiply_add(splat(float_at(sample, (i + 1) * dim + k)), column, s1)
                s2 = multiply_add(splat(float_at(sample, (i + 2) * dim + k)), column, s2)
                s3 = multiply_add(splat(float_at(sample, (i + 3) * dim + k)), column, s3)
            at = dim + i * (i - 1) // 2 + start
            store_part(result, at, s0, i - start)
            store_part(result, at + i, s1, i + 1 - start)
            store_part(result, at + 2 * i + 1, s2, i + 2 - start)
            store_part(result, at + 3 * i + 3, s3, i + 3 - start)
            i += _ROWS
        while i < num_features:
            s0 = splat(np.float32(0))
            for k in range(dim):
                s0 = multiply_add(splat(float_at(sample, i * dim + k)), load(columns, k * padded + start), s0)
            store_part(result, dim + i * (i - 1) // 2 + start, s0, i - start)
            i += 1


@parallel
def interaction_backward(
    features: int, batch: int, num_features: int, dim: int, grad_out: int, grad_features: int
) -> None:
    """grad_out f32[B, D + F (F - 1) / 2] to grad_features f32[B, F, D]."""
    width, size = dim + num_features * (num_features - 1) // 2, num_features * dim
    for b in prange(batch):
        _spread(features + 4 * b * size, num_features, dim, grad_out + 4 * b * width, grad_features + 4 * b * size)


@inlined
def _of_pair(grad: int, i: int, j: int, num_features: int) -> Any:
    """Gradient of the dot of i and j; `grad` points to the first pair. 0: itself, or beyond the last."""
    if i == j or i >= num_features:
        return np.float32(0)
    low, high = min(i, j), max(i, j)
    return float_at(grad, high * (high - 1) // 2 + low)


@serial
def _spread(sample: int, num_features: int, dim: int, grad: int, result: int) -> None:
    """result[i] = sum over j of the gradient of (i, j) times sample[j]; the first vector also has its own."""
    pairs = grad + 4 * dim
    for k in range(0, dim, LANES):
        count = dim - k
        for block in range(0, num_features, _ROWS):
            # The last block goes back to be whole; what it computes again comes out the same.
            i = max(min(block, num_features - _ROWS), 0)
            _spread_rows(sample + 4 * k, num_features, dim, count, pairs, i, result + 4 * k)
        own = load_part(grad, k, count)
        store_part(result, k, add(own, load_part(result, k, count)), count)


@inlined
def _spread_rows(sample: int, num_features: int, dim: int, count: int, pairs: int, i: int, result: int) -> None:
    """Rows i to i + 3 of one vector's width."""
    s0 = s1 = s2 = s3 = splat(np.float32(0))
    lower = i * (i - 1) // 2
    for j in range(i):
        row = load_part(sample, j * dim, count)
        s0 = multiply_add(splat(float_at(pairs, lower + j)), row, s0)
        s1 = multiply_add(splat(float_at(pairs, lower + i + j)), row, s1)
        s2 = multiply_add(splat(float_at(pairs, lower + 2 * i + 1 + j)), row, s2)
        s3 = multiply_add(splat(float_at(pairs, lower + 3 * i + 3 + j)), row, s3)
    for j in range(i, min(i + _ROWS, num_features)):
        row = load_part(sample, j * dim, count)
        s0 = multiply_add(splat(_of_pair(pairs, i, j, num_features)), row, s0)
        s1 = multiply_add(splat(_of_pair(pairs, i + 1, j, num_features)), row, s1)
        s2 = multiply_add(splat(_of_pair(pairs, i + 2, j, num_features)), row, s2)
        s3 = multiply_add(splat(_of_pair(pairs, i + 3, j, num_features)), row, s3)
    for j in range(i + _ROWS, num_features):
        row, at = load_part(sample, j * dim, count), j * (j - 1) // 2 + i
        s0 = multiply_add(splat(float_at(pairs, at)), row, s0)
        s1 = multiply_add(splat(float_at(pairs, at + 1)), row, s1)
        s2 = multiply_add(splat(float_at(pairs, at + 2)), row, s2)
        s3 = multiply_add(splat(float_at(pairs, at + 3)), row, s3)
    store_part(result, i * dim, s0, count)
    if i + 1 < num_features:
        store_part(result, (i + 1) * dim, s1, count)
    if i + 2 < num_features:
        store_part(result, (i + 2) * dim, s2, count)
    if i + 3 < num_features:
        store_part(result, (i + 3) * dim, s3, count)
