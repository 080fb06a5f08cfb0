"""What MLPs need beside matrix products: quantized weights, the rectifier's backward, the loss."""

from typing import Any, NamedTuple

import numpy as np

from ..jit.compile import inlined, kernel, serial
from ..jit.memory import FLOATS_PER_LINE, float_at, long_at, set_float
from ..jit.simd import (
    FOUR,
    LANES,
    add,
    load_number,
    load_part,
    multiply,
    rectify_bf16,
    splat,
    store_number,
    store_part,
    transpose,
    where_positive,
)
from ..jit.simd_integers import as_float
from ..jit.threads import on_all_threads
from .absmax_tracker import largest_magnitude
from .codes import codes_of_row

COPY_LONGS = 6
"""Of one item of `copy_rows`, as int64: source f32[rows, columns], target, rows, columns, bits, target is BF16."""

_SMALLEST_SCALE = np.float32(1e-8)
_ROWS_PER_ITEM = 64
_SAMPLES_PER_ITEM = 512
_ROWS_PER_TRANSPOSE, _COLUMNS_PER_TRANSPOSE = 256, 64  # longer stretches of each row that is written are quicker


@inlined
def _uniform_scale(absmax: np.float32, limit: np.float32) -> np.float32:
    """Returns the scale under which max|W| is code `limit`; a kernel divides by it."""
    scale = absmax / limit
    if scale < _SMALLEST_SCALE:  # false for NaN, which stays
        scale = _SMALLEST_SCALE
    return scale


@kernel
def uniform_scales(absmax: int, scales: int, count: int, limit: np.float32) -> bool:
    """Writes the scale of each absmax, both f32[count]; returns whether all of absmax is finite."""
    finite = True
    for i in range(count):
        value = float_at(absmax, i)
        set_float(scales, i, _uniform_scale(value, limit))
        finite &= value < np.inf  # false for NaN
    return finite


@kernel
def copy_rows(items: int, num_items: int, unquantized: int) -> None:
    """Copies items int64[num_items, COPY_LONGS], of about the same size; `unquantized`: the bits that mean so."""
    on_all_threads(num_items, _copy_item, (items, unquantized))


@serial
def _copy_item(items: int, unquantized: int, number: int) -> None:
    item = items + 8 * COPY_LONGS * number
    source, target = long_at(item, 0), long_at(item, 1)
    rows, columns, bits, is_bf16 = long_at(item, 2), long_at(item, 3), long_at(item, 4), long_at(item, 5)
    if bits == unquantized:
        for k in range(0, rows * columns, LANES):
            count = rows * columns - k
            store_number(target, k, load_part(source, k, count), count, is_bf16)
        return
    limit = np.float32((1 << (bits - 1)) - 1)
    for row in range(rows):
        first = row * columns
        scale = _uniform_scale(as_float(largest_magnitude(source, first, first + columns)), limit)
        for k in range(0, columns, LANES):
            codes = codes_of_row(source, first + k, columns - k, np.float32(1) / scale, limit)
            store_number(target, first + k, multiply(codes, splat(scale)), columns - k, is_bf16)


class Layer(NamedTuple):
    """Addresses of what belongs to the outputs of one layer."""

    grad: int  # [B, O], changed in place
    activation: int  # [B, O]; 0: no rectifier
    transposed: int  # f32, its rows `stride` apart, with room for multiples of LANES rows and columns; 0: not wanted
    bias: int  # f32[O]
    batch: int
    width: int
    stride: int
    is_bf16: int  # grad and activation


@inlined
def _sums_stride(width: int) -> int:
    """Returns how far apart the items' sums lie: threads write to no line of the cache in common."""
    return (width + FLOATS_PER_LINE - 1) // FLOATS_PER_LINE * FLOATS_PER_LINE


def rectify_scratch(batch: int, width: int) -> int:
    """Returns how many floats of scratch memory `rectify_backward` needs."""
    return -(-batch // _ROWS_PER_ITEM) * -(-width // FLOATS_PER_LINE) * FLOATS_PER_LINE


@kernel
def rectify_backward(layer: Layer, partial: int) -> None:
    """Sets grad to 0 where activation is; bias = its sums over the batch; transposed = its transpose.

    partial: f32[items, O rounded up]. The items depend on the batch only, so the sums do not depend on the threads.
    """
    width, items = layer.width, (layer.batch + _ROWS_PER_ITEM - 1) // _ROWS_PER_ITEM
    on_all_threads(items, _rectify_rows, (layer, partial))
    if layer.transposed and layer.batch > _ROWS_PER_TRANSPOSE:
        rows = (layer.batch + _ROWS_PER_TRANSPOSE - 1) // _ROWS_PER_TRANSPOSE
        columns = (width + _COLUMNS_PER_TRANSPOSE - 1) // _COLUMNS_PER_TRANSPOSE
        on_all_threads(rows * columns, _transpose_item, (layer,))
    for k in range(0, width, LANES):
        summed = splat(np.float32(0))
        for item in range(items):
            summed = add(summed, load_part(partial, item * _sums_stride(width) + k, width - k))
        store_part(layer.bias, k, summed, width - k)


@serial
def _rectify_rows(layer: Layer, partial: int, item: int) -> None:
    """Handles an item's rows one after the other: columns of them would lie in the same few sets of the cache."""
    start = item * _ROWS_PER_ITEM
    end = min(layer.batch, start + _ROWS_PER_ITEM)
    sums = partial + 4 * item * _sums_stride(layer.width)
    for k in range(0, layer.width, LANES):
        store_part(sums, k, splat(np.float32(0)), layer.width - k)
    for row in range(start, end, FOUR):
        _rectify_few(layer, row, min(row + FOUR, end), sums)
    if layer.transposed and layer.batch <= _ROWS_PER_TRANSPOSE:  # another time around all threads would cost more
        _transpose_block(layer, start, end, 0, layer.width)


@inlined
def _rectified(layer: Layer, row: int, k: int, count: int) -> Any:
    """Rectifies and reads the numbers of a row from k on."""
    at = row * layer.width + k
    if not layer.activation:
        return load_number(layer.grad, at, count, layer.is_bf16)
    if layer.is_bf16:
        return rectify_bf16(layer.grad, layer.activation, at, count)
    kept = where_positive(load_part(layer.activation, at, count), load_part(layer.grad, at, count))
    store_part(layer.grad, at, kept, count)
    return kept


@serial
def _rectify_few(layer: Layer, start: int, end: int, sums: int) -> None:
    """Rectifies up to four rows, and adds them to the sums in their order."""
    width = layer.width
    for k in range(0, width, LANES):
        summed = load_part(sums, k, width - k)
        if end - start == FOUR:
            summed = add(summed, _rectified(layer, start, k, width - k))
            summed = add(summed, _rectified(layer, start + 1, k, width - k))
            summed = add(summed, _rectified(layer, start + 2, k, width - k))
            summed = add(summed, _rectified(layer, start + 3, k, width - k))
        else:
            for row in range(start, end):
                summed = add(summed, _rectified(layer, row, k, width - k))
        store_part(sums, k, summed, width - k)


@serial
def _transpose_item(layer: Layer, item: int) -> None:
    """Transposes an item's block of the gradient."""
    columns = (layer.width + _COLUMNS_PER_TRANSPOSE - 1) // _COLUMNS_PER_TRANSPOSE
    row, column = item // columns * _ROWS_PER_TRANSPOSE, item % columns * _COLUMNS_PER_TRANSPOSE
    end, last = min(layer.batch, row + _ROWS_PER_TRANSPOSE), min(layer.width, column + _COLUMNS_PER_TRANSPOSE)
    _transpose_block(layer, row, end, column, last)


@serial
def _transpose_block(layer: Layer, start: int, end: int, first: int, last: int) -> None:
    """Transposes the rows start to end of the columns first to last, a register's width of columns at a time."""
    for column in range(first, last, LANES):
        for row in range(start, end, LANES):
            source = layer.grad + 4 * (row * layer.width + column)
            target = layer.transposed + 4 * (column * layer.stride + row)
            transpose(source, layer.width, end - row, layer.width - column, target, layer.stride)


class Clicks(NamedTuple):
    """Addresses of the logits of a batch and what belongs to them, all f32[B]."""

    logits: int
    labels: int
    weights: int  # 0: every sample counts once
    grad: int
    batch: int


def loss_scratch(batch: int) -> int:
    """Returns how many floats of scratch memory `click_loss` needs."""
    return -(-batch // _SAMPLES_PER_ITEM) * FLOATS_PER_LINE


@kernel
def click_loss(clicks: Clicks, share: float, partial: int, loss: int) -> None:
    """Writes loss f32 = the sum over the samples, each times its weight, times `share`; grad = the gradient of that.

    partial: f32[items, FLOATS_PER_LINE], of which one is used. The items depend on the batch only, so the loss does not
    depend on the threads.
    """
    items = (clicks.batch + _SAMPLES_PER_ITEM - 1) // _SAMPLES_PER_ITEM
    on_all_threads(items, _add_up, (clicks, np.float32(share), partial))
    summed = 0.0
    for item in range(items):
        summed += float_at(partial, item * FLOATS_PER_LINE)
    set_float(loss, 0, np.float32(summed * share))


@serial
def _add_up(clicks: Clicks, share: np.float32, partial: int, item: int) -> None:
    one, summed = np.float32(1), 0.0
    for i in range(item * _SAMPLES_PER_ITEM, min(clicks.batch, (item + 1) * _SAMPLES_PER_ITEM)):
        x, y = float_at(clicks.logits, i), float_at(clicks.labels, i)
        # Of the negative magnitude: large logits must not overflow. And no two large numbers are subtracted.
        small = np.exp(-abs(x))
        loss = ((one - y) * x if x >= 0 else -y * x) + np.log1p(small)
        probability = (one if x >= 0 else small) / (one + small)
        if clicks.weights:
            weight = float_at(clicks.weights, i)
            summed += weight * loss
            set_float(clicks.grad, i, weight * ((probability - y) * share))
        else:
            summed += loss
            set_float(clicks.grad, i, (probability - y) * share)
    set_float(partial, item * FLOATS_PER_LINE, np.float32(summed))
