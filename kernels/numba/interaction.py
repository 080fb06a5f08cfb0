"""The dot interaction of a batch, forward and backward, each thread with its share of the samples."""

from typing import NamedTuple

from ..jit.compile import inlined, kernel, serial
from ..jit.memory import FLOATS_PER_LINE, prefetch
from ..jit.simd import LANES, load_number, load_part, store, store_number
from ..jit.threads import on_all_threads
from .bf16_interaction import backward_by_pairs, dots_by_pairs, pair_backward_of, pair_dots_of
from .interaction_backward import sample_backward
from .pair_dots import dots


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
    width = dim + num_features * (num_features - 1) // 2 + LANES
    return sample + FLOATS_PER_LINE, -(-width // FLOATS_PER_LINE) * FLOATS_PER_LINE


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
            if dots_by_pairs(num_features, dim):
                sample, target = features + 2 * b * size, out + 2 * b * width
                pair_dots_of(sample, num_features, dim, columns, padded, result, target)
            else:
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
    padded = (num_features + LANES - 1) // LANES * LANES
    result = wide + 4 * scratch.sample
    grad = result + 4 * scratch.sample
    for b in range(batch * worker // scratch.threads, batch * (worker + 1) // scratch.threads):
        if is_bf16:
            _prefetch_sample(features, (b + 1) * size // 2, size // 2)
            _prefetch_sample(grad_out, (b + 1) * width // 2, width // 2)
            if backward_by_pairs(num_features, dim):
                sample, target = features + 2 * b * size, grad_features + 2 * b * size
                of_sample = grad_out + 2 * b * width
                pair_backward_of(sample, num_features, dim, of_sample, wide, result, padded, target)
            else:
                _widen(features, b * size, size, wide)
                _widen(grad_out, b * width, width, grad)
                sample_backward(wide, num_features, dim, grad, result)
                _narrow(result, grad_features, b * size, size)
        else:
            _prefetch_sample(features, (b + 1) * size, size)
            _prefetch_sample(grad_out, (b + 1) * width, width)
            sample = features + 4 * b * size
            sample_backward(sample, num_features, dim, grad_out + 4 * b * width, grad_features + 4 * b * size)
