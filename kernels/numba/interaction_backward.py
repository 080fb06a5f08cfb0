"""The gradient of all dot products: sums of a sample's vectors, four of them at a time."""

from typing import Any

import numpy as np

from ..jit.compile import inlined, serial
from ..jit.memory import float_at
from ..jit.simd import FOUR, LANES, add, add_four, load, load_part, multiply_add, no_sums, splat, store, store_part


@serial
def sample_backward(sample: int, num_features: int, dim: int, grad: int, result: int) -> None:
    """Writes result[i], the sum over j of the gradient of (i, j) times sample[j]; the first vector also has its own."""
    pairs = grad + 4 * dim
    whole = dim // (2 * LANES) * (2 * LANES) if num_features >= FOUR else 0
    # The last four go back to be whole; what is computed again comes out the same.
    for k in range(0, whole, 2 * LANES):
        for block in range(0, num_features, FOUR):
            _backward_wide(sample + 4 * k, num_features, dim, pairs, min(block, num_features - FOUR), result + 4 * k)
    for k in range(whole, dim, LANES):
        if num_features < FOUR:
            _backward_few(sample + 4 * k, num_features, dim, dim - k, pairs, result + 4 * k)
        else:
            for block in range(0, num_features, FOUR):
                i = min(block, num_features - FOUR)
                _backward_four(sample + 4 * k, num_features, dim, dim - k, pairs, i, result + 4 * k)
    for k in range(0, dim, LANES):
        count = dim - k
        store_part(result, k, add(load_part(grad, k, count), load_part(result, k, count)), count)


@inlined
def _backward_few(sample: int, num_features: int, dim: int, count: int, pairs: int, result: int) -> None:
    """Handles all rows, where there are no four."""
    for i in range(num_features):
        summed = splat(np.float32(0))
        for j in range(num_features):
            if i != j:
                low, high = min(i, j), max(i, j)
                of_pair = splat(float_at(pairs, high * (high - 1) // 2 + low))
                summed = multiply_add(of_pair, load_part(sample, j * dim, count), summed)
        store_part(result, i * dim, summed, count)


@inlined
def _grads_below(pairs: int, i: int, j: int) -> Any:
    """Loads the gradients of the dots of vectors i to i + 3 with vector j < i."""
    at = pairs + 4 * (i * (i - 1) // 2 + j)
    return float_at(at, 0), float_at(at, i), float_at(at, 2 * i + 1), float_at(at, 3 * i + 3)


@inlined
def _grads_above(pairs: int, i: int, j: int) -> Any:
    """Loads the gradients of the dots of vectors i to i + 3 with vector j > i + 3."""
    at = pairs + 4 * (j * (j - 1) // 2 + i)
    return float_at(at, 0), float_at(at, 1), float_at(at, 2), float_at(at, 3)


@inlined
def _below(sums: Any, sample: int, j: int, dim: int, count: int, pairs: int, i: int) -> Any:
    """Adds vector j < i to the sums of vectors i to i + 3."""
    g = _grads_below(pairs, i, j)
    return add_four(sums, load_part(sample, j * dim, count), g[0], g[1], g[2], g[3])


@inlined
def _above(sums: Any, sample: int, j: int, dim: int, count: int, pairs: int, i: int) -> Any:
    """Adds vector j > i + 3 to the sums of vectors i to i + 3."""
    g = _grads_above(pairs, i, j)
    return add_four(sums, load_part(sample, j * dim, count), g[0], g[1], g[2], g[3])


@inlined
def _backward_four(sample: int, num_features: int, dim: int, count: int, pairs: int, i: int, result: int) -> None:
    """Rows i to i + 3 of one register's width; even and odd vectors are summed apart."""
    even, odd = no_sums(), no_sums()
    for j in range(0, i - 1, 2):
        even = _below(even, sample, j, dim, count, pairs, i)
        odd = _below(odd, sample, j + 1, dim, count, pairs, i)
    if i & 1:
        even = _below(even, sample, i - 1, dim, count, pairs, i)
    at, none = pairs + 4 * (i * (i - 1) // 2 + i), np.float32(0)
    p10, p20, p21 = float_at(at, i), float_at(at, 2 * i + 1), float_at(at, 2 * i + 2)
    p30, p31, p32 = float_at(at, 3 * i + 3), float_at(at, 3 * i + 4), float_at(at, 3 * i + 5)
    own = sample + 4 * i * dim
    even = add_four(even, load_part(own, 0, count), none, p10, p20, p30)
    odd = add_four(odd, load_part(own, dim, count), p10, none, p21, p31)
    even = add_four(even, load_part(own, 2 * dim, count), p20, p21, none, p32)
    odd = add_four(odd, load_part(own, 3 * dim, count), p30, p31, p32, none)
    for j in range(i + FOUR, num_features - 1, 2):
        even = _above(even, sample, j, dim, count, pairs, i)
        odd = _above(odd, sample, j + 1, dim, count, pairs, i)
    if (num_features - i) & 1:
        even = _above(even, sample, num_features - 1, dim, count, pairs, i)
    store_part(result, i * dim, add(even[0], odd[0]), count)
    store_part(result, (i + 1) * dim, add(even[1], odd[1]), count)
    store_part(result, (i + 2) * dim, add(even[2], odd[2]), count)
    store_part(result, (i + 3) * dim, add(even[3], odd[3]), count)


@inlined
def _store_four(result: int, i: int, dim: int, sums: Any) -> None:
    store(result, i * dim, sums[0])
    store(result, (i + 1) * dim, sums[1])
    store(result, (i + 2) * dim, sums[2])
    store(result, (i + 3) * dim, sums[3])


@inlined
def _add_to_both(left: Any, right: Any, sample: int, j: int, dim: int, g: Any) -> Any:
    """Adds multiples of both registers of vector j."""
    return (
        add_four(left, load(sample, j * dim), g[0], g[1], g[2], g[3]),
        add_four(right, load(sample, j * dim + LANES), g[0], g[1], g[2], g[3]),
    )


@inlined
def _backward_wide(sample: int, num_features: int, dim: int, pairs: int, i: int, result: int) -> None:
    """Rows i to i + 3 of two registers' width: a number that was read is used twice."""
    left, right = no_sums(), no_sums()
    for j in range(i):
        left, right = _add_to_both(left, right, sample, j, dim, _grads_below(pairs, i, j))
    at, none = pairs + 4 * (i * (i - 1) // 2 + i), np.float32(0)
    p10, p20, p21 = float_at(at, i), float_at(at, 2 * i + 1), float_at(at, 2 * i + 2)
    p30, p31, p32 = float_at(at, 3 * i + 3), float_at(at, 3 * i + 4), float_at(at, 3 * i + 5)
    left, right = _add_to_both(left, right, sample, i, dim, (none, p10, p20, p30))
    left, right = _add_to_both(left, right, sample, i + 1, dim, (p10, none, p21, p31))
    left, right = _add_to_both(left, right, sample, i + 2, dim, (p20, p21, none, p32))
    left, right = _add_to_both(left, right, sample, i + 3, dim, (p30, p31, p32, none))
    for j in range(i + FOUR, num_features):
        left, right = _add_to_both(left, right, sample, j, dim, _grads_above(pairs, i, j))
    _store_four(result, i, dim, left)
    _store_four(result + 4 * LANES, i, dim, right)
