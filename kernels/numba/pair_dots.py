"""Dot products of all pairs of a sample's vectors: four vectors with one or two registers of others at a time."""

from typing import Any

from ..jit.compile import inlined, serial
from ..jit.memory import float_at
from ..jit.simd import FOUR, LANES, add, add_four, load, load_part, no_sums, store_part, transpose


@serial
def dots(sample: int, num_features: int, dim: int, columns: int, padded: int, result: int) -> None:
    """Writes result[D + i (i - 1) / 2 + j] = sample[i] . sample[j] for j < i; columns: scratch for the transpose."""
    for k in range(0, dim, LANES):
        store_part(result, k, load_part(sample, k, dim - k), dim - k)
        for i in range(0, num_features, LANES):
            tile, target = sample + 4 * (i * dim + k), columns + 4 * (k * padded + i)
            transpose(tile, dim, num_features - i, dim - k, target, padded)
    for start in range(0, num_features - 1, 2 * LANES):
        i = start + 1
        while i < num_features:
            column = columns + 4 * start
            if i + FOUR > start + LANES + 1 and start + LANES < padded:
                _dots_of_four_wide(sample, num_features, dim, column, padded, start, i, result + 4 * dim)
            else:
                _dots_of_four(sample, num_features, dim, column, padded, start, i, result + 4 * dim)
            i += FOUR


@inlined
def store_dots(pairs: int, last: int, start: int, i: int, s0: Any, s1: Any, s2: Any, s3: Any) -> None:
    """Stores the dots of vectors i to i + 3 with those from `start` on, as many as come before each."""
    at = pairs + 4 * (i * (i - 1) // 2 + start)
    store_part(at, 0, s0, i - start)
    if i + 1 <= last:
        store_part(at, i, s1, i + 1 - start)
    if i + 2 <= last:
        store_part(at, 2 * i + 1, s2, i + 2 - start)
    if i + 3 <= last:
        store_part(at, 3 * i + 3, s3, i + 3 - start)


@inlined
def _dots_of_four(
    sample: int, num_features: int, dim: int, column: int, padded: int, start: int, i: int, pairs: int
) -> None:
    """Vectors i to i + 3 with LANES vectors from `start` on; even and odd elements are summed apart."""
    last = num_features - 1  # stands in for vectors beyond it
    r0, r1, r2, r3 = i * dim, min(i + 1, last) * dim, min(i + 2, last) * dim, min(i + 3, last) * dim
    even, odd = no_sums(), no_sums()
    for k in range(0, dim - 1, 2):
        even = _add_element(even, sample + 4 * k, r0, r1, r2, r3, load(column, k * padded))
        odd = _add_element(odd, sample + 4 * (k + 1), r0, r1, r2, r3, load(column, (k + 1) * padded))
    if dim & 1:
        even = _add_element(even, sample + 4 * (dim - 1), r0, r1, r2, r3, load(column, (dim - 1) * padded))
    s0, s1, s2, s3 = add(even[0], odd[0]), add(even[1], odd[1]), add(even[2], odd[2]), add(even[3], odd[3])
    store_dots(pairs, last, start, i, s0, s1, s2, s3)


@inlined
def _dots_of_four_wide(
    sample: int, num_features: int, dim: int, column: int, padded: int, start: int, i: int, pairs: int
) -> None:
    """Vectors i to i + 3 with twice LANES vectors from `start` on: a number that was read is used twice."""
    last = num_features - 1
    r0, r1, r2, r3 = i * dim, min(i + 1, last) * dim, min(i + 2, last) * dim, min(i + 3, last) * dim
    left, right = no_sums(), no_sums()
    for k in range(dim):
        place = sample + 4 * k
        x0, x1, x2, x3 = float_at(place, r0), float_at(place, r1), float_at(place, r2), float_at(place, r3)
        left = add_four(left, load(column, k * padded), x0, x1, x2, x3)
        right = add_four(right, load(column, k * padded + LANES), x0, x1, x2, x3)
    store_dots(pairs, last, start, i, left[0], left[1], left[2], left[3])
    store_dots(pairs, last, start + LANES, i, right[0], right[1], right[2], right[3])


@inlined
def _add_element(sums: Any, place: int, r0: int, r1: int, r2: int, r3: int, column: Any) -> Any:
    return add_four(sums, column, float_at(place, r0), float_at(place, r1), float_at(place, r2), float_at(place, r3))
