"""One sample's interaction by products of BF16 pairs: half as many instructions as FP32's, and nothing is widened.

Sums are FP32, in an order of their own. Where the processor has no such products, `interaction` widens instead.
"""

from typing import Any

from ..jit.compile import inlined, serial
from ..jit.memory import int_at
from ..jit.simd import FOUR, LANES, add, load_bf16, load_part, no_sums, transpose
from ..jit.simd_bf16 import (
    HAS_PAIR_PRODUCTS,
    add_pair_products,
    every_pair,
    every_word,
    narrow,
    store_pairs,
    whole_words,
)
from .pair_dots import store_dots


@inlined
def dots_by_pairs(num_features: int, dim: int) -> int:
    """Tells whether `pair_dots_of` computes vectors of this size."""
    return HAS_PAIR_PRODUCTS and dim % 2 == 0


@inlined
def backward_by_pairs(num_features: int, dim: int) -> int:
    """Tells whether `pair_backward_of` computes vectors of this size."""
    return (
        HAS_PAIR_PRODUCTS and dim % (2 * LANES) == 0 and num_features <= 2 * dim
    )  # so that the scratch memory holds it


@serial
def pair_dots_of(sample: int, num_features: int, dim: int, columns: int, padded: int, sums: int, out: int) -> None:
    """Writes what `pair_dots.dots` does to BF16 `out`; columns: scratch for the words' transpose, sums: for dots."""
    words = dim // 2
    for k in range(0, words, LANES):
        for i in range(0, num_features, LANES):
            place, target = sample + 4 * (i * words + k), columns + 4 * (k * padded + i)
            transpose(place, words, num_features - i, words - k, target, padded)
    for start in range(0, num_features - 1, 2 * LANES):
        for i in range(start + 1, num_features, FOUR):
            column = columns + 4 * start
            if i + FOUR > start + LANES + 1 and start + LANES < padded:
                _four_wide(sample, num_features, words, column, padded, start, i, sums)
            else:
                _four(sample, num_features, words, column, padded, start, i, sums)
    for k in range(0, dim, LANES):
        narrow(out, k, load_bf16(sample, k, dim - k), dim - k)
    pairs = num_features * (num_features - 1) // 2
    for k in range(0, pairs, LANES):
        narrow(out, dim + k, load_part(sums, k, pairs - k), pairs - k)


@inlined
def _add_four_pairs(sums: Any, words: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """Adds the products of the same words with each of four."""
    return (
        add_pair_products(sums[0], a, words),
        add_pair_products(sums[1], b, words),
        add_pair_products(sums[2], c, words),
        add_pair_products(sums[3], d, words),
    )


@inlined
def _four(sample: int, num_features: int, words: int, column: int, padded: int, start: int, i: int, pairs: int) -> None:
    """Vectors i to i + 3 with LANES vectors from `start` on; even and odd words are summed apart."""
    last = num_features - 1  # stands in for vectors beyond it
    r0, r1, r2, r3 = i * words, min(i + 1, last) * words, min(i + 2, last) * words, min(i + 3, last) * words
    even, odd = no_sums(), no_sums()
    for k in range(0, words - 1, 2):
        even = _add_words(even, sample + 4 * k, r0, r1, r2, r3, whole_words(column, k * padded))
        odd = _add_words(odd, sample + 4 * (k + 1), r0, r1, r2, r3, whole_words(column, (k + 1) * padded))
    if words & 1:
        even = _add_words(even, sample + 4 * (words - 1), r0, r1, r2, r3, whole_words(column, (words - 1) * padded))
    s0, s1, s2, s3 = add(even[0], odd[0]), add(even[1], odd[1]), add(even[2], odd[2]), add(even[3], odd[3])
    store_dots(pairs, last, start, i, s0, s1, s2, s3)


@inlined
def _add_words(sums: Any, place: int, r0: int, r1: int, r2: int, r3: int, words: Any) -> Any:
    a, b = every_pair(place, 2 * r0), every_pair(place, 2 * r1)
    return _add_four_pairs(sums, words, a, b, every_pair(place, 2 * r2), every_pair(place, 2 * r3))


@inlined
def _four_wide(
    sample: int, num_features: int, words: int, column: int, padded: int, start: int, i: int, pairs: int
) -> None:
    """Vectors i to i + 3 with twice LANES vectors from `start` on: a word that was read is used twice."""
    last = num_features - 1
    r0, r1, r2, r3 = i * words, min(i + 1, last) * words, min(i + 2, last) * words, min(i + 3, last) * words
    left, right = no_sums(), no_sums()
    for k in range(words):
        place = sample + 4 * k
        a, b = every_pair(place, 2 * r0), every_pair(place, 2 * r1)
        c, d = every_pair(place, 2 * r2), every_pair(place, 2 * r3)
        left = _add_four_pairs(left, whole_words(column, k * padded), a, b, c, d)
        right = _add_four_pairs(right, whole_words(column, k * padded + LANES), a, b, c, d)
    store_dots(pairs, last, start, i, left[0], left[1], left[2], left[3])
    store_dots(pairs, last, start + LANES, i, right[0], right[1], right[2], right[3])


@serial
def pair_backward_of(
    sample: int, num_features: int, dim: int, grad: int, vectors: int, gradients: int, padded: int, result: int
) -> None:
    """Writes what `interaction_backward.sample_backward` does to BF16 `result`.

    vectors and gradients: scratch for words of two vectors each, [pairs, dim] and [pairs, padded].
    """
    pairs, of_dots = (num_features + 1) // 2, grad + 2 * dim
    for pair in range(pairs):
        first, second = 2 * pair, 2 * pair + 1
        is_there = int(second < num_features)
        for k in range(0, dim, LANES):
            store_pairs(vectors, pair * dim + k, sample, first * dim + k, LANES, second * dim + k, is_there * LANES)
        # The rows of two vectors below the diagonal: word i has the gradients of their dots with vector i.
        at, next_at = first * (first - 1) // 2, second * (second - 1) // 2
        for i in range(0, first + 1, LANES):
            store_pairs(gradients, pair * padded + i, of_dots, at + i, first - i, next_at + i, is_there * (second - i))
    for i in range(0, num_features, FOUR):
        for k in range(0, dim, 2 * LANES):
            _backward_of_four(vectors + 4 * k, num_features, dim, of_dots, gradients, padded, i, grad, k, result)


@inlined
def _pair_of(of_dots: int, gradients: int, padded: int, row: int, pair: int) -> Any:
    """Reads the gradients of a vector's dots with both of a pair, itself not counted."""
    if row > 2 * pair + 1:
        return every_pair(of_dots, row * (row - 1) // 2 + 2 * pair)
    if row == 2 * pair + 1:
        half = row * (row - 1) // 2 + 2 * pair
        return every_word(int_at(of_dots + 2 * (half - 1), 0) >> 16 & 0xFFFF)
    return every_word(int_at(gradients, pair * padded + row))


@inlined
def _add_vectors(left: Any, right: Any, vectors: int, at: int, a: Any, b: Any, c: Any, d: Any) -> Any:
    """Adds multiples of both registers of a pair of vectors."""
    return (
        _add_four_pairs(left, whole_words(vectors, at), a, b, c, d),
        _add_four_pairs(right, whole_words(vectors, at + LANES), a, b, c, d),
    )


@inlined
def _backward_of_four(
    vectors: int,
    num_features: int,
    dim: int,
    of_dots: int,
    gradients: int,
    padded: int,
    i: int,
    grad: int,
    k: int,
    result: int,
) -> None:
    """Computes two registers' width of the gradients of vectors i to i + 3, `i` a multiple of four."""
    last, pairs = num_features - 1, (num_features + 1) // 2
    r1, r2, r3 = min(i + 1, last), min(i + 2, last), min(i + 3, last)
    f0, f1, f2, f3 = i * (i - 1) // 2, r1 * (r1 - 1) // 2, r2 * (r2 - 1) // 2, r3 * (r3 - 1) // 2
    left, right = no_sums(), no_sums()
    for pair in range(i // 2):
        a, b = every_pair(of_dots, f0 + 2 * pair), every_pair(of_dots, f1 + 2 * pair)
        c, d = every_pair(of_dots, f2 + 2 * pair), every_pair(of_dots, f3 + 2 * pair)
        left, right = _add_vectors(left, right, vectors, pair * dim, a, b, c, d)
    for pair in range(i // 2, min(i // 2 + 2, pairs)):
        a, b = _pair_of(of_dots, gradients, padded, i, pair), _pair_of(of_dots, gradients, padded, r1, pair)
        c, d = _pair_of(of_dots, gradients, padded, r2, pair), _pair_of(of_dots, gradients, padded, r3, pair)
        left, right = _add_vectors(left, right, vectors, pair * dim, a, b, c, d)
    for pair in range(i // 2 + 2, pairs):
        at = 2 * (pair * padded + i)
        a, b = every_pair(gradients, at), every_pair(gradients, at + 2)
        c, d = every_pair(gradients, at + 4), every_pair(gradients, at + 6)
        left, right = _add_vectors(left, right, vectors, pair * dim, a, b, c, d)
    if i == 0:
        own, other = load_bf16(grad, k, LANES), load_bf16(grad, k + LANES, LANES)
        left = add(left[0], own), left[1], left[2], left[3]
        right = add(right[0], other), right[1], right[2], right[3]
    _narrow_both(result, i * dim + k, left[0], right[0])
    if i + 1 <= last:
        _narrow_both(result, r1 * dim + k, left[1], right[1])
    if i + 2 <= last:
        _narrow_both(result, r2 * dim + k, left[2], right[2])
    if i + 3 <= last:
        _narrow_both(result, r3 * dim + k, left[3], right[3])


@inlined
def _narrow_both(result: int, at: int, left: Any, right: Any) -> None:
    narrow(result, at, left, LANES)
    narrow(result, at + LANES, right, LANES)
