"""What lies between the products of an MLP's backward, in one pass: rectifier, sum for the bias, transposition."""

from typing import NamedTuple

import numpy as np

from .bfloat import load_number, store_number
from .compiled import kernel, serial
from .threads import on_all_threads
from .vector import LANES, add, load_part, splat, store_part, transpose, where_positive

_ROWS_PER_ITEM = 64


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


def partial_floats(batch: int, width: int) -> int:
    """Scratch memory."""
    return -(-batch // _ROWS_PER_ITEM) * width


@kernel
def rectify_backward(layer: Layer, partial: int) -> None:
    """grad becomes 0 where activation is; bias = its sums over the batch; transposed = its transpose.

    partial: f32[items, O]. The items depend on the batch only, so the sums do not depend on the threads.
    """
    width, items = layer.width, (layer.batch + _ROWS_PER_ITEM - 1) // _ROWS_PER_ITEM
    on_all_threads(items, _rectify_rows, (layer, partial))
    for k in range(0, width, LANES):
        summed = splat(np.float32(0))
        for item in range(items):
            summed = add(summed, load_part(partial, item * width + k, width - k))
        store_part(layer.bias, k, summed, width - k)


@serial
def _rectify_rows(layer: Layer, partial: int, item: int) -> None:
    start = item * _ROWS_PER_ITEM
    end = min(layer.batch, start + _ROWS_PER_ITEM)
    for k in range(0, layer.width, 2 * LANES):
        _rectify_columns(layer, start, end, k, partial + 4 * item * layer.width)
        if layer.transposed:
            _transpose_columns(layer, start, end, k)


@serial
def _rectify_columns(layer: Layer, start: int, end: int, k: int, sums: int) -> None:
    """Two registers' width of the rows start to end."""
    grad, gate, is_bf16 = layer.grad, layer.activation, layer.is_bf16
    first, second = layer.width - k, layer.width - k - LANES
    s0 = s1 = splat(np.float32(0))
    for row in range(start, end):
        at = row * layer.width + k
        g0, g1 = load_number(grad, at, first, is_bf16), load_number(grad, at + LANES, second, is_bf16)
        if gate:
            g0 = where_positive(load_number(gate, at, first, is_bf16), g0)
            g1 = where_positive(load_number(gate, at + LANES, second, is_bf16), g1)
            store_number(grad, at, g0, first, is_bf16)
            store_number(grad, at + LANES, g1, second, is_bf16)
        s0, s1 = add(s0, g0), add(s1, g1)
    store_part(sums, k, s0, first)
    store_part(sums, k + LANES, s1, second)


@serial
def _transpose_columns(layer: Layer, start: int, end: int, k: int) -> None:
    """Two registers' width of the rows start to end, which the cache still holds."""
    for column in range(k, min(k + 2 * LANES, layer.width), LANES):
        for row in range(start, end, LANES):
            source = layer.grad + 4 * (row * layer.width + column)
            target = layer.transposed + 4 * (column * layer.stride + row)
            transpose(source, layer.width, end - row, layer.width - column, target, layer.stride)
