"""Dot products of all pairs of a sample's vectors: four vectors with one or two registers of others at a time."""

from typing import Any, NamedTuple

from ..jit.compile import inlined, kernel, serial
from ..jit.memory import float_at, prefetch
from ..jit.simd import (
    FOUR,
    LANES,
    add,
    add_four,
    load,
    load_number,
    load_part,
    no_sums,
    store,
    store_number,
    store_part,
    transpose,
)
from ..jit.threads import on_all_threads
from .interaction_backward import sample_backward


class InteractionShape(NamedTuple):
    """B samples of F vectors of D numbers; `is_bf16`: all of them, and the dots, are BF16."""

    batch: int
    num_features: int
    dim: int
    is_bf16: int


class InteractionScratch(NamedTuple):
    """Memory of each thread: a sample widened, the same transposed or its gradient, and what goes with its dots."""

    place: int  # f32[threads, 2 sample + width]
    sample: int
    width: int
    threads: int


def scratch_sizes(num_features: int, dim: int) -> tuple[int, int]:
    """Returns `sample` and `width` of InteractionScratch, with room for what whole registers write beyond."""
    sample = -(-num_features // LANES) * LANES * -(-dim // LANES) * LANES
    return sample + LANES, dim + num_features * (num_features - 1) // 2 + LANES


@inlined
def _widen(source: int, first: int, count: int, target: int) -> None:
    """Writes FP32 copies of BF16 numbers, and maybe up to LANES - 1 more."""
    for k in range(0, count, LANES):
        store(target, k, load_number(source, first + k, count - k, 1))


@inlined
def _narrow(source: int, target: int, first: int, count: int) -> None:
    """Writes BF16 copies of FP32 numbers."""
    for k in range(0, count, LANES):
        store_number(target, first + k, load_part(source, k, count - k), count - k, 1)


@inlined
def _prefetch_sample(place: int, first: int, count: int) -> None:
    """Numbers that come next: the order in which they are read is none that the hardware foresees."""
    for k in range(0, count, 16):
        prefetch(place, first + k)


@kernel
def interaction_forward(features: int, shape: InteractionShape, out: int, scratch: InteractionScratch) -> None:
    """Turns features [B, F, D] into out [B, D + F (F - 1) / 2]."""
    on_all_threads(scratch.threads, _forward, (features, shape, out, scratch))


@serial
def _forward(features: int, shape: InteractionShape, out: int, scratch: InteractionScratch, worker: int) -> None:
    """Computes the forward of a worker's share of the samples."""
    batch, num_features, dim, is_bf16 = shape
    size, width = num_features * dim, dim + num_features * (num_features - 1) // 2
    padded = (num_features + LANES - 1) // LANES * LANES
    wide = scratch.place + 4 * worker * (2 * scratch.sample + scratch.width)
    columns = wide + 4 * scratch.sample
    result = columns + 4 * scratch.sample
    for b in range(batch * worker // scratch.threads, batch * (worker + 1) // scratch.threads):
        if is_bf16:
            _prefetch_sample(features, (b + 1) * size // 2, size // 2)
            _widen(features, b * size, size, wide)
            dots(wide, num_features, dim, columns, padded, result)
            _narrow(result, out, b * width, width)
        else:
            _prefetch_sample(features, (b + 1) * size, size)
            dots(features + 4 * b * size, num_features, dim, columns, padded, out + 4 * b * width)


@kernel
def interaction_backward(
    features: int, shape: InteractionShape, grad_out: int, grad_features: int, scratch: InteractionScratch
) -> None:
    """Turns grad_out [B, D + F (F - 1) / 2] into grad_features [B, F, D]."""
    on_all_threads(scratch.threads, _backward, (features, shape, grad_out, grad_features, scratch))


@serial
def _backward(
    features: int, shape: InteractionShape, grad_out: int, grad_features: int, scratch: InteractionScratch, worker: int
) -> None:
    """Computes the backward of a worker's share of the samples."""
    batch, num_features, dim, is_bf16 = shape
    size, width = num_features * dim, dim + num_features * (num_features - 1) // 2
    wide = scratch.place + 4 * worker * (2 * scratch.sample + scratch.width)
    result = wide + 4 * scratch.sample
    grad = result + 4 * scratch.sample
    for b in range(batch * worker // scratch.threads, batch * (worker + 1) // scratch.threads):
        if is_bf16:
            _prefetch_sample(features, (b + 1) * size // 2, size // 2)
            _prefetch_sample(grad_out, (b + 1) * width // 2, width // 2)
            _widen(features, b * size, size, wide)
            _widen(grad_out, b * width, width, grad)
            sample_backward(wide, num_features, dim, grad, result)
            _narrow(result, grad_features, b * size, size)
        else:
            _prefetch_sample(features, (b + 1) * size, size)
            _prefetch_sample(grad_out, (b + 1) * width, width)
            sample = features + 4 * b * size
            sample_backward(sample, num_features, dim, grad_out + 4 * b * width, grad_features + 4 * b * size)


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
def _store_dots(pairs: int, last: int, start: int, i: int, s0: Any, s1: Any, s2: Any, s3: Any) -> None:
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
    _store_dots(pairs, last, start, i, s0, s1, s2, s3)


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
    _store_dots(pairs, last, start, i, left[0], left[1], left[2], left[3])
    _store_dots(pairs, last, start + LANES, i, right[0], right[1], right[2], right[3])


@inlined
def _add_element(sums: Any, place: int, r0: int, r1: int, r2: int, r3: int, column: Any) -> Any:
    return add_four(sums, column, float_at(place, r0), float_at(place, r1), float_at(place, r2), float_at(place, r3))
