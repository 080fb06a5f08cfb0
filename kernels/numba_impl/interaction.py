"""Pairwise dot products of a sample's feature vectors, and their gradient; a sample stays in the L1 cache."""

import numpy as np
from numba import prange
from numpy.typing import NDArray

from .compiled import parallel, serial
from .vector import LANES, add, load_part, multiply_add, splat, store_part

_SAMPLES_PER_ITEM = 8
_ROWS = 4
"""Feature vectors worked on at once: as many sums in registers hide the latency of a multiply-add."""


@parallel
def interaction_forward(features: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """features [B, F, D] to out [B, D + F (F - 1) / 2]."""
    batch, num_features, dim = features.shape
    padded = (num_features + LANES - 1) // LANES * LANES
    for item in prange((batch + _SAMPLES_PER_ITEM - 1) // _SAMPLES_PER_ITEM):
        columns = np.zeros((dim, padded), np.float32)
        for b in range(item * _SAMPLES_PER_ITEM, min(batch, (item + 1) * _SAMPLES_PER_ITEM)):
            sample, result = features[b], out[b]
            for k in range(0, dim, LANES):
                store_part(result, k, load_part(sample, k, dim - k), dim - k)
            for i in range(num_features):
                for k in range(dim):
                    columns[k, i] = sample[i, k]
            _lower_dots(sample, columns, result)


@serial
def _lower_dots(sample: NDArray[np.float32], columns: NDArray[np.float32], result: NDArray[np.float32]) -> None:
    """result[D + i (i - 1) / 2 + j] = sample[i] . sample[j] for j < i; `columns` is sample transposed."""
    num_features, dim = sample.shape
    padded = columns.shape[1]
    for start in range(0, num_features - 1, LANES):
        i = start + 1
        while i + _ROWS <= num_features:
            s0 = s1 = s2 = s3 = splat(np.float32(0))
            for k in range(dim):
                column = load_part(columns, k * padded + start, LANES)
                s0 = multiply_add(splat(sample[i, k]), column, s0)
                s1 = multiply_add(splat(sample[i + 1, k]), column, s1)
                s2 = multiply_add(splat(sample[i + 2, k]), column, s2)
                s3 = multiply_add(splat(sample[i + 3, k]), column, s3)
            at = dim + i * (i - 1) // 2 + start
            store_part(result, at, s0, i - start)
            store_part(result, at + i, s1, i + 1 - start)
            store_part(result, at + 2 * i + 1, s2, i + 2 - start)
            store_part(result, at + 3 * i + 3, s3, i + 3 - start)
            i += _ROWS
        while i < num_features:
            s0 = splat(np.float32(0))
            for k in range(dim):
                s0 = multiply_add(splat(sample[i, k]), load_part(columns, k * padded + start, LANES), s0)
            store_part(result, dim + i * (i - 1) // 2 + start, s0, i - start)
            i += 1


@parallel
def interaction_backward(
    features: NDArray[np.float32], grad_out: NDArray[np.float32], grad_features: NDArray[np.float32]
) -> None:
    """grad_out [B, D + F (F - 1) / 2] to grad_features [B, F, D]."""
    batch, num_features, dim = features.shape
    for item in prange((batch + _SAMPLES_PER_ITEM - 1) // _SAMPLES_PER_ITEM):
        square = np.zeros((num_features + _ROWS, num_features), np.float32)
        for b in range(item * _SAMPLES_PER_ITEM, min(batch, (item + 1) * _SAMPLES_PER_ITEM)):
            grad = grad_out[b]
            pair = dim
            for i in range(num_features):
                for j in range(i):
                    square[i, j] = square[j, i] = grad[pair]
                    pair += 1
            _spread(features[b], square, grad_features[b])
            for k in range(0, dim, LANES):
                direct = load_part(grad, k, dim - k)
                store_part(grad_features[b], k, add(load_part(grad_features[b], k, dim - k), direct), dim - k)


@serial
def _spread(sample: NDArray[np.float32], square: NDArray[np.float32], result: NDArray[np.float32]) -> None:
    """result = square @ sample; square has _ROWS rows to spare."""
    num_features, dim = sample.shape
    for k in range(0, dim, LANES):
        for i in range(0, num_features, _ROWS):
            s0 = s1 = s2 = s3 = splat(np.float32(0))
            for j in range(num_features):
                row = load_part(sample, j * dim + k, dim - k)
                s0 = multiply_add(splat(square[i, j]), row, s0)
                s1 = multiply_add(splat(square[i + 1, j]), row, s1)
                s2 = multiply_add(splat(square[i + 2, j]), row, s2)
                s3 = multiply_add(splat(square[i + 3, j]), row, s3)
            store_part(result, i * dim + k, s0, dim - k)
            if i + 1 < num_features:
                store_part(result, (i + 1) * dim + k, s1, dim - k)
            if i + 2 < num_features:
                store_part(result, (i + 2) * dim + k, s2, dim - k)
            if i + 3 < num_features:
                store_part(result, (i + 3) * dim + k, s3, dim - k)
